"""The map of U-Net weights: exact in both directions, strict about names, and right by diffusers' own numbers."""

import functools
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop import unet
from genjax.interop.trees import read_flat
from genjax.models.unet import SIZES, UNet

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = dict(widths=(4, 8), blocks=1, groups=2)
MODELS = {
    "attention everywhere": UNet(widths=(4, 4, 8), blocks=1, attention_levels=(0, 1, 2), groups=2),
    "one level, a number, no attention": UNet(
        widths=(4,), blocks=2, attention_levels=(), middle_attention=False, condition="number", groups=2
    ),
    "residual resampling, classes": UNet(
        **SMALL, resample="residual", scale_shift=True, num_classes=3, null_class=True, learned_variance=True
    ),
}
CONFIG = dict(
    block_out_channels=[8, 12],
    down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    up_block_types=["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    downsample_type="resnet",
    upsample_type="resnet",
)


@functools.cache
def random_parameters(name):
    """Parameters that are all different numbers."""
    model = MODELS[name]
    shapes = [((2, 4, 4, 3), np.float32), ((2,), np.float32)]
    shapes += [((2,), np.float32)] * (model.condition == "number") + [((2,), np.int32)] * (model.num_classes > 0)
    abstract = jax.eval_shape(model.init, jax.random.key(0), *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), meta.unbox(abstract)["params"])


@functools.cache
def golden(name):
    """(Inputs and output, weights, config)."""
    arrays, metadata = read_flat(GOLDEN / f"unet_{name}.safetensors")
    weights = {key.removeprefix("weights."): array for key, array in arrays.items() if key.startswith("weights.")}
    return arrays, weights, json.loads(metadata["config"])


@pytest.mark.parametrize("name", ["ddpm", "adm"])
def test_forward_equals_the_golden_outputs_of_diffusers(name):
    arrays, weights, config = golden(name)
    model = UNet(**unet.sizes_from_config(config))
    label = [arrays["label"].astype(np.int32)] if "label" in arrays else []
    with jax.default_matmul_precision("highest"):
        output = jax.jit(model.apply)(
            {"params": unet.from_diffusers(weights)},
            arrays["x"].transpose(0, 2, 3, 1),
            arrays["timestep"] / 1000,
            *label,
        )
    np.testing.assert_allclose(output, arrays["output"].transpose(0, 2, 3, 1), rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trips_are_the_identity_bit_for_bit(name, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_parameters(name))
    before, after = (flatten_dict(tree, sep=".") for tree in (params, unet.from_diffusers(unet.to_diffusers(params))))
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert after[name].dtype == leaf.dtype
        np.testing.assert_array_equal(after[name], leaf)


@pytest.mark.parametrize("name", ["ddpm", "adm"])
def test_the_file_of_diffusers_is_written_as_it_was_read(name):
    _, weights, _ = golden(name)
    written = unet.to_diffusers(unet.from_diffusers(weights))
    assert written.keys() == weights.keys()
    for key, array in weights.items():
        assert written[key].flags.c_contiguous
        np.testing.assert_array_equal(written[key], array)


def test_names_of_old_files_are_known():
    _, weights, _ = golden("ddpm")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = weights
    for new, name in old.items():
        renamed = {key.replace(f".{new}.", f".{name}."): array for key, array in renamed.items()}
    assert renamed.keys() != weights.keys()
    jax.tree.map(np.testing.assert_array_equal, unet.from_diffusers(renamed), unet.from_diffusers(weights))


def test_the_configs_of_what_google_released_give_the_published_sizes():
    common = dict(attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6)
    cifar10 = common | dict(
        block_out_channels=[128, 256, 256, 256],
        down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    )
    celebahq = common | dict(
        block_out_channels=[128, 128, 256, 256, 512, 512],
        down_block_types=["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    )
    assert UNet(**unet.sizes_from_config(cifar10)) == UNet(**SIZES["ddpm-cifar10"] | dict(dropout=0.0))
    assert UNet(**unet.sizes_from_config(celebahq)) == UNet(**SIZES["ddpm-256"])


def test_what_a_config_leaves_out_is_the_default_of_diffusers():
    """Of diffusers 0.42.1; tests/parity asks the class itself."""
    blocks = {name: CONFIG[name] for name in unet.NEEDED} | dict(
        down_block_types=["AttnDownBlock2D"] * 2, up_block_types=["AttnUpBlock2D"] * 2
    )
    assert UNet(**unet.sizes_from_config(blocks)) == UNet(
        widths=(8, 12),
        attention_levels=(0, 1),
        channels=3,
        blocks=2,
        middle_attention=True,
        head_dim=8,
        groups=32,
        epsilon=1e-5,
        scale_shift=False,
        resample="convolution",
        downsample_padding=1,
        dropout=0.0,
        condition="class",
        num_classes=0,
        learned_variance=False,
        sines_first=False,
        frequency_shift=0,
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'; genjax knows 'positional' only"),
        ({"act_fn": "relu"}, "act_fn = 'relu'; genjax knows 'silu' only"),
        ({"down_block_types": ["SkipDownBlock2D"] * 2}, "down_block_types of a UNet2DModel are 2 of DownBlock2D, Attn"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types of a UNet2DModel are 2 of UpBlock2D"),
        ({"up_block_types": ["UpBlock2D"] * 2}, r"the same levels down and up, not at \(1,\) and \(\)"),
        ({"upsample_type": "conv"}, "by convolutions everywhere, or everywhere in residual blocks"),
        ({"resnet_time_scale_shift": "spatial"}, "is default or scale_shift, not 'spatial'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "32 groups as everywhere, not attn_norm_num_groups = None"),
        ({"time_embedding_dim": 7}, "time_embedding_dim of a UNet is 32, 4 times its first width"),
        ({"out_channels": 4}, "a UNet of 3 channels gives as many, or twice as many, not 4"),
        ({"class_embed_type": "simple_projection"}, "class_embed_type of a UNet2DModel is one of"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(change, says):
    # What resamples the first level on the way up is told by the type of its block.
    config = CONFIG | ({"up_block_types": ["AttnUpBlock2D"] * 2} if "upsample_type" in change else {})
    config |= {"down_block_types": ["AttnDownBlock2D"] * 2} if "upsample_type" in change else {}
    with pytest.raises(InputError, match=says):
        unet.sizes_from_config(config | change)


def test_a_config_without_its_blocks_is_refused():
    with pytest.raises(InputError, match="the config of a UNet2DModel has no block_out_channels, up_block_types$"):
        unet.sizes_from_config({"down_block_types": CONFIG["down_block_types"]})


def test_missing_and_unknown_names_and_other_shapes_are_refused_and_named():
    _, weights, _ = golden("adm")
    some = {name: array for name, array in weights.items() if name != "up_blocks.0.attentions.1.to_k.bias"}
    with pytest.raises(InputError, match=r"missing up_blocks\.0\.attentions\.1\.to_k\.bias$"):
        unet.from_diffusers(some)
    with pytest.raises(InputError, match=r"unknown down_blocks\.2\.resnets\.0\.lora\.weight$"):
        unet.from_diffusers(weights | {"down_blocks.2.resnets.0.lora.weight": np.zeros(2)})
    with pytest.raises(InputError, match=r"^mid_block\.resnets\.0\.conv1\.weight is of shape \(12, 12, 1, 1\)"):
        unet.from_diffusers(weights | {"mid_block.resnets.0.conv1.weight": np.zeros((12, 12, 1, 1))})


def test_what_is_no_unet_at_all_is_refused():
    with pytest.raises(InputError, match="these are not weights of a UNet2DModel that genjax knows: missing down_bl"):
        unet.from_diffusers({"conv_in.weight": np.zeros((4, 3, 3, 3))})
    with pytest.raises(InputError, match="these are not parameters of a UNet that genjax knows: missing down_0"):
        unet.to_diffusers({"blocks": {"kernel": np.zeros(3)}})
