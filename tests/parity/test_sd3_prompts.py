"""What is read of a prompt equals what diffusers' StableDiffusion3Pipeline reads, tokenizers and all."""

import jax
import numpy as np
import pytest

from genjax.data import SubwordTokenizer
from genjax.interop import clip, t5
from genjax.models.clip_text import CLIPText
from genjax.models.sd3_text import SD3Text
from genjax.models.t5_encoder import T5Encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")
from tests.parity.small_tokenizers import write_clip, write_t5  # noqa: E402  (imports transformers)

PROMPTS = ["", "a photo of a cat", "котята и щенки, 小猫在垫子上 🐈", "far too long " * 20]
LENGTH = 24  # of T5's texts


def weights(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(diffusers' pipeline without a denoiser, our network, its parameters, our three tokenizers)."""
    torch.manual_seed(0)
    directories = [tmp_path_factory.mktemp(name) for name in ("clip", "t5")]
    count = write_clip(directories[0], PROMPTS)
    tokenizer_3 = write_t5(directories[1], PROMPTS)
    files = [str(directories[0] / name) for name in ("vocab.json", "merges.txt")]
    common = dict(vocab_size=count, max_position_embeddings=77, bos_token_id=count - 2, eos_token_id=count - 1)
    clip_l = transformers.CLIPTextConfig(
        **common, hidden_size=12, num_attention_heads=3, num_hidden_layers=2, intermediate_size=20, projection_dim=12
    )
    clip_g = transformers.CLIPTextConfig(
        **common, hidden_size=16, num_attention_heads=2, num_hidden_layers=3, intermediate_size=24, projection_dim=16,
        hidden_act="gelu",
    )  # fmt: skip
    big = transformers.T5Config(
        vocab_size=len(tokenizer_3), d_model=32, d_kv=8, d_ff=24, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    encoders = [
        transformers.CLIPTextModelWithProjection(clip_l).eval(),
        transformers.CLIPTextModelWithProjection(clip_g).eval(),
        transformers.T5EncoderModel(big).eval(),
    ]
    tokenizers = [
        transformers.CLIPTokenizer(*files, model_max_length=77),
        transformers.CLIPTokenizer(*files, pad_token="!", model_max_length=77),  # of id 0 in the released one
    ]
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=4, num_layers=1, num_attention_heads=1, attention_head_dim=8, caption_projection_dim=8,
        joint_attention_dim=32, pooled_projection_dim=28, pos_embed_max_size=4,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=None,
        text_encoder=encoders[0], tokenizer=tokenizers[0], text_encoder_2=encoders[1], tokenizer_2=tokenizers[1],
        text_encoder_3=encoders[2], tokenizer_3=tokenizer_3,
    )  # fmt: skip
    model = SD3Text(
        clip_l=CLIPText(**clip.sizes_from_config(clip_l.to_dict(), projected=True)),
        clip_g=CLIPText(**clip.sizes_from_config(clip_g.to_dict(), projected=True)),
        t5=T5Encoder(**t5.sizes_from_config(big.to_dict())),
    )
    params = {
        "clip_l": clip.from_transformers(weights(encoders[0])),
        "clip_g": clip.from_transformers(weights(encoders[1])),
        "t5": t5.from_transformers(weights(encoders[2])),
    }
    pad = tokenizers[1].pad_token_id
    ours = (
        SubwordTokenizer(str(directories[0]), 77, pad=count - 1),
        SubwordTokenizer(str(directories[0]), 77, pad=pad),
        SubwordTokenizer(str(directories[1]), LENGTH, pad=0),
    )
    return pipeline, model, params, ours


@pytest.mark.parametrize("without_t5", [False, True])
def test_context_and_pooled_vector_are_equal(pair, without_t5, monkeypatch):
    pipeline, model, params, tokenizers = pair
    if without_t5:
        model = model.clone(left_out=("t5",))
        monkeypatch.setattr(pipeline, "text_encoder_3", None)
    tokens = [np.stack([tokenizer.encode(prompt) for prompt in PROMPTS]) for tokenizer in tokenizers]
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(model.apply)({"params": params}, *tokens)
    with torch.no_grad():
        context, _, pooled, _ = pipeline.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=LENGTH
        )
    for found, expected in zip(ours, (context.numpy(), pooled.numpy()), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
