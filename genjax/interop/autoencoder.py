"""Weights of convolutional autoencoders: genjax's Autoencoder <-> diffusers' `AutoencoderKL` and `VQModel`, and the
original files of taming-transformers, latent diffusion, Stable Diffusion and FLUX.

Both layouts hold the same layers under other names; the map is a table of names for each, and one walk through the
network. The decoder's levels are counted from the deepest in diffusers' `up_blocks`, from the first in `decoder.up`.
Query, key and value are three matrices there (in original files 1 x 1 convolutions), one here. A codebook is not the
autoencoder's but the quantiser's, and comes beside it. Both directions are exact, and every name and shape must fit.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop.tables import Entry, Row, StateDict, entries, from_state_dict, to_state_dict
from genjax.interop.unet import with_new_names

__all__ = [
    "Weights",
    "config_for_diffusers",
    "from_diffusers",
    "from_original",
    "sizes_from_diffusers",
    "sizes_from_original",
    "to_diffusers",
    "to_original",
]

CODEBOOK = "quantize.embedding.weight"
"""The name of a codebook in every layout."""
IN_OTHER_FILES = "first_stage_model."
"""What the names begin with where a file holds a diffusion model too."""


class Weights(NamedTuple):
    """What a file of an autoencoder holds."""

    autoencoder: dict
    """Parameters of the Autoencoder, {"encoder": ..., "decoder": ..., "conv_out": ...}."""
    codebook: np.ndarray | None
    """(K, D), of a VQ quantiser; None where there is none."""


@dataclass(frozen=True)
class _Layout:
    """Names of layers. Braces are a level, or the number of a block, or both in this order."""

    residual: dict[str, str]
    attention: dict[str, str]
    resample: dict[str, str]
    middle_residual: str
    middle_attention: str
    norm_out: str
    in_residual: list[Row]
    shortcut: list[Row]
    in_attention: list[Row]
    first_middle: int
    """Number of the first block in the middle."""
    deepest_first: bool
    """Whether the decoder's levels are counted from the deepest."""
    kernel: str = "weight"
    conv_out: str = "decoder.conv_out"


RESIDUAL: list[Row] = [
    ("norm1", "norm1", "i"),
    ("conv1", "conv1", "oikk"),
    ("norm2", "norm2", "o"),
    ("conv2", "conv2", "ookk"),
]
OURS = _Layout(
    residual={"encoder": "encoder.down_{}_residual_{}", "decoder": "decoder.up_{}_residual_{}"},
    attention={"encoder": "encoder.down_{}_attention_{}", "decoder": "decoder.up_{}_attention_{}"},
    resample={"encoder": "encoder.down_{}_resample", "decoder": "decoder.up_{}_resample"},
    middle_residual="{}.middle_residual_{}",
    middle_attention="{}.middle_attention",
    norm_out="{}.norm_out",
    in_residual=[],
    shortcut=[],
    in_attention=[("norm", "norm", "o"), ("qkv", "qkv", "oo"), ("proj", "proj", "oo")],
    first_middle=0,
    deepest_first=False,
    kernel="kernel",
    conv_out="conv_out",
)
DIFFUSERS = _Layout(
    residual={"encoder": "encoder.down_blocks.{}.resnets.{}", "decoder": "decoder.up_blocks.{}.resnets.{}"},
    attention={"encoder": "encoder.down_blocks.{}.attentions.{}", "decoder": "decoder.up_blocks.{}.attentions.{}"},
    resample={"encoder": "encoder.down_blocks.{}.downsamplers.0", "decoder": "decoder.up_blocks.{}.upsamplers.0"},
    middle_residual="{}.mid_block.resnets.{}",
    middle_attention="{}.mid_block.attentions.0",
    norm_out="{}.conv_norm_out",
    in_residual=RESIDUAL,
    shortcut=[("shortcut", "conv_shortcut", "oiuu")],
    in_attention=[("norm", "group_norm", "o"), ("qkv", "to_q to_k to_v", "oo"), ("proj", "to_out.0", "oo")],
    first_middle=0,
    deepest_first=True,
)
ORIGINAL = _Layout(
    residual={"encoder": "encoder.down.{}.block.{}", "decoder": "decoder.up.{}.block.{}"},
    attention={"encoder": "encoder.down.{}.attn.{}", "decoder": "decoder.up.{}.attn.{}"},
    resample={"encoder": "encoder.down.{}.downsample", "decoder": "decoder.up.{}.upsample"},
    middle_residual="{}.mid.block_{}",
    middle_attention="{}.mid.attn_1",
    norm_out="{}.norm_out",
    in_residual=RESIDUAL,
    shortcut=[("shortcut", "nin_shortcut", "oiuu")],
    in_attention=[("norm", "norm", "o"), ("qkv", "q k v", "oouu"), ("proj", "proj_out", "oouu")],
    first_middle=1,
    deepest_first=False,
)

WHAT = "weights of an autoencoder"


def from_diffusers(state_dict: StateDict) -> Weights:
    """Parameters from the state dict of diffusers' AutoencoderKL or VQModel.

    Raises InputError where a name is missing or unknown, or a shape does not fit.
    """
    return _read(with_new_names(state_dict), DIFFUSERS)


def to_diffusers(autoencoder: Mapping, codebook: np.ndarray | None = None) -> StateDict:
    """The state dict of diffusers' AutoencoderKL, or with a codebook (K, D) of its VQModel.

    Raises InputError where the parameters are not those of an Autoencoder.
    """
    return _written(autoencoder, codebook, DIFFUSERS)


def from_original(state_dict: StateDict) -> Weights:
    """Parameters from an original file; the networks of its loss, and a diffusion model beside it, are passed over.

    Raises InputError where a name is missing or unknown, or a shape does not fit.
    """
    return _read(_own(state_dict), ORIGINAL)


def to_original(autoencoder: Mapping, codebook: np.ndarray | None = None) -> StateDict:
    """The state dict of taming-transformers and latent diffusion.

    Raises InputError where the parameters are not those of an Autoencoder.
    """
    return _written(autoencoder, codebook, ORIGINAL)


def sizes_from_diffusers(state_dict: StateDict) -> dict[str, Any]:
    """Constructor arguments of the Autoencoder that a state dict of AutoencoderKL or VQModel fits, but for its groups.

    Groups are not in the weights; all released ones have 32. Raises InputError where a name is missing.
    """
    return _told(with_new_names(state_dict), DIFFUSERS)


def sizes_from_original(state_dict: StateDict) -> dict[str, Any]:
    """As `sizes_from_diffusers`, of an original file."""
    return _told(_own(state_dict), ORIGINAL)


def config_for_diffusers(sizes: Mapping[str, Any], scale: float, shift: float | None) -> dict[str, Any]:
    """The `config.json` of the `AutoencoderKL` of an Autoencoder's sizes, and of how latents are scaled and shifted."""
    attention = ["Attn" if level in sizes["attention_levels"] else "" for level in range(len(sizes["widths"]))]
    quantised = sizes["code_channels"] is not None
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": sizes["image_channels"],
        "out_channels": sizes["image_channels"],
        "down_block_types": [f"{name}DownEncoderBlock2D" for name in attention],
        "up_block_types": [f"{name}UpDecoderBlock2D" for name in attention[::-1]],
        "block_out_channels": list(sizes["widths"]),
        "layers_per_block": sizes["blocks"],
        "latent_channels": sizes["z_channels"],
        "norm_num_groups": sizes.get("groups", 32),
        "mid_block_add_attention": sizes["middle_attention"],
        "use_quant_conv": quantised,
        "use_post_quant_conv": quantised,
        "scaling_factor": scale,
        "shift_factor": shift,
    }


def _told(arrays: StateDict, layout: _Layout) -> dict[str, Any]:
    sizes = _sizes(arrays, layout, WHAT)
    encoded, code = (sizes.out, sizes.z_channels) if sizes.quant is None else sizes.quant
    return dict(
        image_channels=sizes.image_channels,
        widths=tuple(sizes.widths),
        blocks=sizes.blocks,
        attention_levels=tuple(sorted(sizes.attention_levels)),
        middle_attention=sizes.middle_attention,
        z_channels=sizes.z_channels,
        code_channels=None if sizes.quant is None else code,
        moments=encoded == 2 * code,
    )


def _own(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The arrays of the autoencoder in an original file."""
    inside = any(name.startswith(IN_OTHER_FILES) for name in state_dict)
    start = IN_OTHER_FILES if inside else ""
    own = {name.removeprefix(start): state_dict[name] for name in state_dict if name.startswith(start)}
    return {name: array for name, array in own.items() if not name.startswith("loss.")}


def _read(state_dict: StateDict, layout: _Layout) -> Weights:
    weights = dict(state_dict)
    codebook = weights.pop(CODEBOOK, None)
    if codebook is not None and codebook.ndim != 2:
        raise InputError(f"{CODEBOOK} is of shape {codebook.shape}, and a codebook has two axes")
    return Weights(from_state_dict(_entries(_sizes(weights, layout, WHAT), layout), weights, WHAT), codebook)


def _written(autoencoder: Mapping, codebook: np.ndarray | None, layout: _Layout) -> StateDict:
    what = "parameters of an Autoencoder"
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(autoencoder, sep=".").items()}
    state_dict = to_state_dict(_entries(_sizes(flat, OURS, what), layout), autoencoder, what)
    return state_dict if codebook is None else {**state_dict, CODEBOOK: np.asarray(codebook)}


class _Sizes(NamedTuple):
    widths: list[int]
    blocks: int
    attention_levels: set[int]
    middle_attention: bool
    image_channels: int
    z_channels: int
    out: int
    """Channels that the encoder gives."""
    quant: tuple[int, int] | None
    """Channels that come out of the convolution before the quantiser, and go into the one after it."""


def _sizes(arrays: StateDict, layout: _Layout, what: str) -> _Sizes:
    def bias(level: int, number: int) -> str:
        return layout.residual["encoder"].format(level, number) + ".conv1.bias"

    def count(name) -> int:
        return next(number for number in itertools.count() if name(number) not in arrays)

    def into(layer: str) -> int:
        """Channels that a convolution sees."""
        return arrays[f"{layer}.{layout.kernel}"].shape[2 if layout is OURS else 1]

    layers = ("encoder.conv_in", "decoder.conv_in", "encoder.conv_out")
    told = [bias(0, 0), *(f"{layer}.bias" for layer in layers), *(f"{layer}.{layout.kernel}" for layer in layers)]
    quantised = f"quant_conv.{layout.kernel}" in arrays
    if quantised:
        told += [f"post_quant_conv.{layout.kernel}", "quant_conv.bias"]
    missing = [name for name in told if name not in arrays]
    if missing:
        raise InputError(f"these are not {what} that genjax knows: missing {', '.join(missing)}")
    for name in told:
        if np.ndim(arrays[name]) != (1 if name.endswith(".bias") else 4):
            raise InputError(f"{name} is of shape {np.shape(arrays[name])}, and is no part of a convolution")
    levels = count(lambda level: bias(level, 0))
    proj = f".{layout.in_attention[-1][1]}.bias"
    return _Sizes(
        widths=[len(arrays[bias(level, 0)]) for level in range(levels)],
        blocks=count(lambda i: bias(0, i)),
        attention_levels={
            level for level in range(levels) if layout.attention["encoder"].format(level, 0) + proj in arrays
        },
        middle_attention=layout.middle_attention.format("encoder") + proj in arrays,
        image_channels=into("encoder.conv_in"),
        z_channels=into("decoder.conv_in"),
        out=len(arrays["encoder.conv_out.bias"]),
        quant=(len(arrays["quant_conv.bias"]), into("post_quant_conv")) if quantised else None,
    )


def _entries(sizes: _Sizes, theirs: _Layout) -> Iterator[Entry]:
    """All leaves of an autoencoder: the walk of the network itself, with the channels that each block sees."""
    widths, deepest = sizes.widths, len(sizes.widths) - 1
    letters = dict(k=3, u=1)

    def layer(ours: str, names: str, shape: str, **lengths: int) -> Iterator[Entry]:
        yield from entries([(ours, names, shape)], "", "", letters | lengths)

    def residual(ours: str, names: str, into: int, out: int) -> Iterator[Entry]:
        table = theirs.in_residual + theirs.shortcut * (into != out)
        yield from entries(table, f"{ours}.", f"{names}.", letters | dict(i=into, o=out))

    def attention(ours: str, names: str, width: int) -> Iterator[Entry]:
        for entry in entries(theirs.in_attention, f"{ours}.", f"{names}.", letters | dict(o=width)):
            # a 1 x 1 convolution is a matrix here
            yield Entry(entry.ours, entry.theirs, entry.shape, "patches") if len(entry.shape) == 4 else entry

    def middle(side: str) -> Iterator[Entry]:
        for i in range(2):
            names = theirs.middle_residual.format(side, i + theirs.first_middle)
            yield from residual(OURS.middle_residual.format(side, i), names, widths[-1], widths[-1])
        if sizes.middle_attention:
            ours, names = (layout.middle_attention.format(side) for layout in (OURS, theirs))
            yield from attention(ours, names, widths[-1])

    def levels(side: str, order: list[int], blocks: int, x: int) -> Iterator[Entry]:
        for level in order:
            number = deepest - level if side == "decoder" and theirs.deepest_first else level
            for i in range(blocks):
                ours, names = OURS.residual[side].format(level, i), theirs.residual[side].format(number, i)
                yield from residual(ours, names, x, widths[level])
                x = widths[level]
                if level in sizes.attention_levels:
                    ours, names = OURS.attention[side].format(level, i), theirs.attention[side].format(number, i)
                    yield from attention(ours, names, x)
            if level != order[-1]:
                ours, names = OURS.resample[side].format(level), theirs.resample[side].format(number)
                yield from layer(f"{ours}.conv", f"{names}.conv", "ookk", o=x)

    yield from layer("encoder.conv_in", "encoder.conv_in", "oikk", i=sizes.image_channels, o=widths[0])
    yield from levels("encoder", list(range(deepest + 1)), sizes.blocks, widths[0])
    yield from middle("encoder")
    yield from layer("encoder.norm_out", theirs.norm_out.format("encoder"), "o", o=widths[-1])
    yield from layer("encoder.conv_out", "encoder.conv_out", "oikk", i=widths[-1], o=sizes.out)
    if sizes.quant is not None:
        out, into = sizes.quant
        yield from layer("quant_conv", "quant_conv", "oiuu", i=sizes.out, o=out)
        yield from layer("post_quant_conv", "post_quant_conv", "oiuu", i=into, o=sizes.z_channels)
    yield from layer("decoder.conv_in", "decoder.conv_in", "oikk", i=sizes.z_channels, o=widths[-1])
    yield from middle("decoder")
    yield from levels("decoder", list(range(deepest, -1, -1)), sizes.blocks + 1, widths[-1])
    yield from layer("decoder.norm_out", theirs.norm_out.format("decoder"), "o", o=widths[0])
    yield from layer(OURS.conv_out, theirs.conv_out, "oikk", i=widths[0], o=sizes.image_channels)
