"""The whole of Stable Diffusion 3 equals diffusers' pipelines, from a folder that diffusers has written."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from genjax.tasks import sampling
from genjax.tasks.sampling import Sampler
from genjax.tasks.sd3_pipeline import Pipeline
from genjax.tasks.starts import Start

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")
from tests.parity.small_tokenizers import write_clip, write_t5  # noqa: E402  (imports transformers)

PROMPTS = ["a photo of a cat", "котята, 小猫 🐈 " + "far too long " * 20]
NEGATIVE = "blurred, a dog"
HEIGHT, WIDTH = 24, 32


def randomised(network):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name or parameter.ndim > 1:
                parameter.normal_(0, (parameter[0].numel() if parameter.ndim > 1 else 4) ** -0.5)
    return network.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small pipeline as diffusers lays it down."""
    torch.manual_seed(0)
    files = [tmp_path_factory.mktemp(name) for name in ("clip", "t5")]
    count = write_clip(files[0], [*PROMPTS, NEGATIVE])
    tokenizer_3 = write_t5(files[1], [*PROMPTS, NEGATIVE])
    merges = [str(files[0] / name) for name in ("vocab.json", "merges.txt")]
    common = dict(
        vocab_size=count, max_position_embeddings=77, bos_token_id=count - 2, eos_token_id=count - 1,
        num_hidden_layers=2, intermediate_size=20,
    )  # fmt: skip
    clip_l = transformers.CLIPTextConfig(**common, hidden_size=12, num_attention_heads=3, projection_dim=12)
    clip_g = transformers.CLIPTextConfig(
        **common, hidden_size=16, num_attention_heads=2, projection_dim=16, hidden_act="gelu"
    )
    big = transformers.T5Config(
        vocab_size=len(tokenizer_3), d_model=32, d_kv=8, d_ff=24, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, in_channels=16, num_layers=3, num_attention_heads=2, attention_head_dim=8, qk_norm="rms_norm",
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=28, pos_embed_max_size=12,
        dual_attention_layers=(0,),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=16, norm_num_groups=4, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=randomised(transformer),
        vae=randomised(vae),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=randomised(transformers.CLIPTextModelWithProjection(clip_l)),
        text_encoder_2=randomised(transformers.CLIPTextModelWithProjection(clip_g)),
        text_encoder_3=randomised(transformers.T5EncoderModel(big)),
        tokenizer=transformers.CLIPTokenizer(*merges, model_max_length=77),
        tokenizer_2=transformers.CLIPTokenizer(*merges, pad_token="!", model_max_length=77),
        tokenizer_3=tokenizer_3,
    )
    path = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(path)
    return path, pipeline


@pytest.fixture(scope="module")
def ours(folder):
    """(Our pipeline, what it reads of the prompts and of what is not wanted.)"""
    pipeline = Pipeline(folder[0], folder[0])
    rows, _ = pipeline.encode_prompts([*PROMPTS, NEGATIVE])
    told = {name: array[:2] for name, array in rows.items()}
    null = {f"{sampling.OF_NULL}{name}": np.repeat(array[2:], 2, axis=0) for name, array in rows.items()}
    return pipeline, told, null


def drawn(ours, steps, guidance, start=None):
    """(The noise that diffusers is given too, latents before the autoencoder's scale, pictures)."""
    pipeline, told, null = ours
    task, trained = pipeline.task(HEIGHT, WIDTH)
    sampler = Sampler(task.sampler.solver, steps, guidance, task.sampler.grid)
    rows = told | (null if guidance != 1 else {})
    latents = sampling.sample_rows(task, trained, rows, 2, seed=7, sampler=sampler, start=start)
    noise = np.asarray(task.noise(7, 2, sampler))
    return noise, np.asarray(task.space.to_x_0(latents)), pipeline.decode(latents)


def channels_first(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def options(guidance):
    return dict(guidance_scale=guidance, negative_prompt=[NEGATIVE] * 2, max_sequence_length=256)


def check(found, latents, images):
    theirs = latents.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found[1], theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    np.testing.assert_allclose(found[2] / 2 + 0.5, images, rtol=0, atol=1 / 255)


def both(pipeline, **how):
    """Latents and pictures of one call each."""
    with torch.no_grad():
        return [pipeline(PROMPTS, output_type=kind, **how).images for kind in ("latent", "np")]


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("steps", [4, 28])
def test_text_to_image(folder, ours, steps, guidance):
    found = drawn(ours, steps, guidance)
    how = dict(num_inference_steps=steps, height=HEIGHT, width=WIDTH, latents=channels_first(found[0]))
    check(found, *both(folder[1], **how, **options(guidance)))


def decoded(vae, latents, shift):
    """Pictures in [0, 1] of scaled latents."""
    with torch.no_grad():
        found = vae.decode(latents / vae.config.scaling_factor + shift).sample
    return (found / 2 + 0.5).clamp(0, 1).numpy().transpose(0, 2, 3, 1)


def picture(seed):
    smooth = np.random.default_rng(seed).uniform(size=(4, 4, 3))
    return Image.fromarray(np.uint8(255 * smooth)).resize((WIDTH, HEIGHT), Image.BICUBIC)


@contextlib.contextmanager
def given_noise(monkeypatch, noise):
    """diffusers draws this where it draws noise of latents, and no noise of a posterior."""
    module = "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_"
    with monkeypatch.context() as patch:
        for name in ("img2img", "inpaint"):
            patch.setattr(f"{module}{name}.randn_tensor", lambda shape, **_: channels_first(noise))
        nothing = "diffusers.models.autoencoders.vae.randn_tensor"
        patch.setattr(nothing, lambda shape, generator=None, device=None, dtype=None: torch.zeros(shape))
        yield


@pytest.mark.parametrize(("steps", "guidance", "strength"), [(4, 1.0, 0.5), (28, 5.0, 0.75), (4, 5.0, 1.0)])
def test_image_to_image(folder, ours, monkeypatch, steps, guidance, strength):
    image = picture(3)
    latent = ours[0].encode(np.float32(image)[None] / 127.5 - 1)
    found = drawn(ours, steps, guidance, Start(latent, strength))
    pipeline = diffusers.StableDiffusion3Img2ImgPipeline(**folder[1].components)
    how = dict(image=image, strength=strength, num_inference_steps=steps, **options(guidance))
    with given_noise(monkeypatch, found[0]):
        check(found, *both(pipeline, height=HEIGHT, width=WIDTH, **how))


@pytest.mark.parametrize(("steps", "guidance", "strength"), [(4, 1.0, 0.5), (28, 5.0, 0.75), (4, 5.0, 1.0)])
def test_inpainting(folder, ours, monkeypatch, steps, guidance, strength):
    image = picture(3)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[6:18, 10:] = 255
    latent = ours[0].encode(np.float32(image)[None] / 127.5 - 1)
    stride = ours[0].stride
    kept = np.float32(mask[::stride, ::stride] < 128)[None, :, :, None]
    found = drawn(ours, steps, guidance, Start(latent, strength, kept=kept))
    pipeline = diffusers.StableDiffusion3InpaintPipeline(**folder[1].components)
    how = dict(image=image, mask_image=Image.fromarray(mask), strength=strength, num_inference_steps=steps)
    with given_noise(monkeypatch, found[0]):
        latents, images = both(pipeline, height=HEIGHT, width=WIDTH, **how, **options(guidance))
    # diffusers 0.42 leaves the shift of latents out where this pipeline decodes, which its other pipelines add.
    np.testing.assert_allclose(decoded(folder[1].vae, latents, shift=0.0), images, rtol=0, atol=1e-5)
    check(found, latents, decoded(folder[1].vae, latents, folder[1].vae.config.shift_factor))
