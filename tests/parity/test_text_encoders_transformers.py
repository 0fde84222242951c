"""CLIP's and T5's text encoders equal transformers': features, gradients and names, at random fp32 weights."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from genjax.interop import clip, t5
from genjax.models.clip_text import CLIPText
from genjax.models.t5_encoder import T5Encoder, relative_buckets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLIP = dict(vocab_size=31, hidden_size=24, intermediate_size=40, max_position_embeddings=13, eos_token_id=30)
T5 = dict(vocab_size=31, d_model=24, d_ff=40, feed_forward_proj="gated-gelu")
CLIPS = {
    "l": dict(num_hidden_layers=4, num_attention_heads=4, hidden_act="quick_gelu"),
    "l, as diffusers stores it": dict(num_hidden_layers=2, num_attention_heads=2, hidden_act="quick_gelu", p=24),
    "bigg": dict(num_hidden_layers=3, num_attention_heads=3, hidden_act="gelu", p=10),
    "one block": dict(num_hidden_layers=1, num_attention_heads=6, hidden_act="gelu", p=10),
}
T5S = {
    "wide heads": dict(num_layers=3, num_heads=4, d_kv=9),
    "few buckets": dict(
        num_layers=2, num_heads=3, d_kv=8, relative_attention_num_buckets=8, relative_attention_max_distance=12
    ),
}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def randomised(reference):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            deviation = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.normal_(0, deviation, generator=generator)
    return reference.eval()


def texts(length):
    """Texts of different lengths, padded with the end or with 0."""
    tokens = np.random.default_rng(0).integers(1, 30, (4, length)).astype(np.int32)
    for row, (end, pad) in enumerate(((length - 1, 0), (5, 30), (5, 0), (1, 30))):
        tokens[row, end:] = pad
        tokens[row, end] = 30
    return tokens


def check(model, params, reference, tokens, outputs, convert):
    """The features, and the gradients of the mean of their squares, are equal to 1e-5."""

    @functools.partial(jax.grad, has_aux=True)
    def found(params):
        features = jax.tree.leaves(model.apply({"params": params}, tokens))
        return sum((feature**2).mean() for feature in features), features

    gradients, features = jax.jit(found)(params)
    theirs = outputs(reference(torch.from_numpy(tokens).long(), output_hidden_states=True))
    assert len(features) == len(theirs)
    for ours, expected in zip(features, theirs, strict=True):
        expected = expected.detach().numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    sum(output.square().mean() for output in theirs).backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}
    theirs, ours = (flatten_dict(tree, sep=".") for tree in (convert(theirs), gradients))
    assert ours.keys() == theirs.keys()
    largest = max(np.linalg.norm(gradient) for gradient in theirs.values())
    for name, gradient in ours.items():
        error = np.linalg.norm(gradient - theirs[name])
        size = max(np.linalg.norm(theirs[name]), 1e-3 * largest)  # a bias of keys changes no softmax: its own is 0
        assert error <= 1e-5 * size, f"{name}: gradient of norm {size:.1e} is off by {error:.1e}"


@pytest.mark.parametrize("name", CLIPS)
def test_clip_is_equal(name):
    sizes = dict(CLIPS[name])
    projection = sizes.pop("p", None)
    config = transformers.CLIPTextConfig(**CLIP, **sizes, projection_dim=projection or 1)
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    reference = randomised(kind(config))
    params = clip.from_transformers({name: tensor.numpy() for name, tensor in reference.state_dict().items()})
    model = CLIPText(**clip.sizes_from_config(config.to_dict(), projected=projection is not None))

    def outputs(found):
        pooled = found.text_embeds if projection else found.pooler_output
        return [found.hidden_states[-2], found.last_hidden_state, pooled]

    check(model, params, reference, texts(13), outputs, clip.from_transformers)


@pytest.mark.parametrize("name", T5S)
def test_t5_is_equal(name):
    config = transformers.T5Config(**T5, **T5S[name])
    reference = randomised(transformers.T5EncoderModel(config))
    params = t5.from_transformers({name: tensor.numpy() for name, tensor in reference.state_dict().items()})
    model = T5Encoder(**t5.sizes_from_config(config.to_dict()))
    check(model, params, reference, texts(40), lambda found: [found.last_hidden_state], t5.from_transformers)


@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 12), (16, 50)])
def test_buckets_are_equal_to_the_last(buckets, most):
    places = torch.arange(600)
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        places[None] - places[:, None], bidirectional=True, num_buckets=buckets, max_distance=most
    )
    np.testing.assert_array_equal(relative_buckets(600, buckets, most), theirs.numpy())


def test_what_is_written_loads_in_transformers():
    clip_config = transformers.CLIPTextConfig(**CLIP, num_hidden_layers=2, num_attention_heads=4, projection_dim=10)
    for kind, module, config in (
        (transformers.CLIPTextModelWithProjection, clip, clip_config),
        (transformers.T5EncoderModel, t5, transformers.T5Config(**T5, **T5S["wide heads"])),
    ):
        first, second = randomised(kind(config)), kind(config)
        params = module.from_transformers({name: tensor.numpy() for name, tensor in first.state_dict().items()})
        written = {name: torch.from_numpy(array) for name, array in module.to_transformers(params).items()}
        missing, unknown = second.load_state_dict(written, strict=False)
        assert set(missing) <= {t5.TWIN} and not unknown  # the embedding's second name
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name])
