"""UNet equals diffusers' UNet2DModel: outputs, all gradients and names, at random fp32 weights, as it was released."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.interop import unet
from genjax.models.unet import SIZES, UNet

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

COMMON = dict(norm_num_groups=4, sample_size=8)
DDPM = dict(  # google/ddpm-cifar10-32 and -celebahq-256: attention at one level, which is not the deepest
    block_out_channels=(8, 12, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=None,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    norm_eps=1e-6,
    layers_per_block=2,
)
ADM = dict(  # openai/diffusers-cd_imagenet64_l2
    block_out_channels=(8, 16),
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    downsample_type="resnet",
    upsample_type="resnet",
    resnet_time_scale_shift="scale_shift",
    attn_norm_num_groups=4,
    attention_head_dim=4,
    num_class_embeds=5,
    layers_per_block=1,
)
CONFIGS = {
    "ddpm": DDPM,
    "adm": ADM,
    "adm of lsun": ADM  # openai/diffusers-cd_bedroom256_l2
    | dict(resnet_time_scale_shift="default", num_class_embeds=None, attn_norm_num_groups=None),
    "learned variance": ADM | dict(out_channels=6, layers_per_block=2),
    "convolutions, padded, scaled by a vector": ADM  # the deepest level's kind of block resamples nothing
    | dict(
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        downsample_type="conv",
        upsample_type="conv",
        class_embed_type="identity",
        num_class_embeds=None,
    ),
    "no attention, conditioned on a number": DDPM
    | dict(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
        class_embed_type="timestep",
        layers_per_block=1,
    ),
}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """(UNet, its random parameters, the diffusers network with the same weights)."""
    reference = diffusers.UNet2DModel(**COMMON | CONFIGS[request.param])
    model = UNet(**unet.sizes_from_config(reference.config))
    abstract = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), **inputs(model)))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: random_weights(rng, path[-1].key, leaf.shape), abstract
    )
    state_dict = {name: torch.tensor(array) for name, array in unet.to_diffusers(params).items()}
    reference.load_state_dict(state_dict, strict=True)
    return model, params, reference


def random_weights(rng, kind, shape):
    """Every parameter random, the zero-initialised ones too, with outputs of order one."""
    fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 4
    return rng.normal(kind == "scale", 0.7 * fan_in**-0.5, shape).astype(np.float32)


def inputs(model):
    rng = np.random.default_rng(2)
    batch = {
        "x_t": rng.normal(size=(2, 8, 12, 3)).astype(np.float32),
        "t": np.array([0.875, 0.25], np.float32),  # 1000 t is a whole number: both frameworks see the same t
    }
    if model.num_classes:
        return batch | {"condition": np.array([4, 1])}
    if model.condition == "vector":
        return batch | {"condition": rng.normal(size=(2, 32)).astype(np.float32)}
    return batch | ({"condition": np.array([3.0, 1.5], np.float32)} if model.condition == "number" else {})


def test_outputs_and_gradients_equal_diffusers(pair):
    model, params, reference = pair
    batch = inputs(model)
    target = np.random.default_rng(3).normal(size=(2, 8, 12, 6 if model.learned_variance else 3)).astype(np.float32)

    def loss(params, x_t):
        output = model.apply({"params": params}, **batch | {"x_t": x_t})
        return jnp.square(output - target).mean(), output

    (_, output), (ours, our_slope) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, batch["x_t"])
    ours = flatten_dict(ours, sep=".")

    image = torch.tensor(batch["x_t"]).permute(0, 3, 1, 2).requires_grad_()
    condition = torch.tensor(batch["condition"]) if "condition" in batch else None
    reference.zero_grad()
    their_output = reference(image, 1000 * torch.tensor(batch["t"]), condition).sample.permute(0, 2, 3, 1)
    (their_output - torch.tensor(target)).square().mean().backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}
    theirs = flatten_dict(unet.from_diffusers(gradients), sep=".")

    assert 0.3 < output.std() < 3
    np.testing.assert_allclose(output, their_output.detach().numpy(), rtol=0, atol=5e-6)
    assert ours.keys() == theirs.keys()
    pairs = {name: (ours[name], theirs[name]) for name in ours}
    pairs["x_t"] = our_slope, image.grad.permute(0, 2, 3, 1).numpy()
    for name, (gradient, their_gradient) in pairs.items():
        error, size = np.linalg.norm(gradient - their_gradient), np.linalg.norm(their_gradient)
        assert error <= 1e-5 * size, f"{name}: gradient of norm {size:.1e} is off by {error:.1e}"


def test_names_and_shapes_are_those_of_diffusers(pair):
    _, params, reference = pair
    exported = unet.to_diffusers(params)
    assert {name: array.shape for name, array in exported.items()} == {
        name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()
    }


def test_what_a_config_leaves_out_is_what_diffusers_makes_of_it():
    parameters = inspect.signature(diffusers.UNet2DModel).parameters
    theirs = {name: parameter.default for name, parameter in parameters.items()}
    for name, (default, _) in unet.FIELDS.items():
        assert default == theirs[name], name
    for name, value in unet.ONLY.items():
        assert value == theirs[name], name
    assert unet.sizes_from_config({name: theirs[name] for name in unet.NEEDED}) == unet.sizes_from_config(theirs)


RELEASED = {
    "ddpm-cifar10": dict(
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        **{name: DDPM[name] for name in ("attention_head_dim", "downsample_padding", "flip_sin_to_cos")},
        **{name: DDPM[name] for name in ("freq_shift", "norm_eps")},
    ),
    "ddpm-256": dict(
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
        **{name: DDPM[name] for name in ("attention_head_dim", "downsample_padding", "flip_sin_to_cos")},
        **{name: DDPM[name] for name in ("freq_shift", "norm_eps")},
    ),
    "adm-64": ADM
    | dict(
        block_out_channels=(192, 384, 576, 768),
        down_block_types=("ResnetDownsampleBlock2D",) + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
        layers_per_block=3,
        attn_norm_num_groups=32,
        attention_head_dim=64,
        num_class_embeds=1000,
        out_channels=6,
    ),
}


@pytest.mark.parametrize("size", RELEASED)
def test_the_table_of_sizes_describes_what_was_released(size):
    with torch.device("meta"):
        reference = diffusers.UNet2DModel(**RELEASED[size])
    model, table = UNet(**unet.sizes_from_config(reference.config)), UNet(**SIZES[size])
    untold = dict(dropout=table.dropout, downsample_padding=table.downsample_padding)  # of no use once it is trained
    assert model.clone(**untold) == table
    arrays = {"x_t": jnp.zeros((1, 64, 64, 3)), "t": jnp.zeros(1)}
    arrays |= {"condition": jnp.zeros(1, jnp.int32)} if model.num_classes else {}
    abstract = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), **arrays))
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    assert count == sum(parameter.numel() for parameter in reference.parameters())
