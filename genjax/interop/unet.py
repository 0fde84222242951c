"""U-Net weights: genjax's UNet <-> `diffusers.UNet2DModel`, as google/ddpm-* and openai/diffusers-cd_* have them.

The map is the tables below, one for each kind of block, and the walk through the network that says which blocks there
are, between how many channels. diffusers counts its `up_blocks` from the deepest level, here a level has one number on
the way down and up. Query, key and value are three matrices there, one here; old files call them by other names. Both
directions are exact, and every name and shape must fit.

`sizes_from_config` refuses what a UNet2DModel may be and the UNet is not: Fourier features of time and the blocks of
NCSN++, attention in the middle without a norm, attention on the way up at other levels than on the way down.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop.tables import Entry, Row, StateDict, check_config, entries, from_state_dict, to_state_dict

__all__ = ["from_diffusers", "sizes_from_config", "to_diffusers", "with_new_names"]

RESIDUAL: list[Row] = [  # i: channels in, o: out, m: those that modulate, c: width of the condition, k: 3, u: 1
    ("norm1", "norm1", "i"),
    ("conv1", "conv1", "oikk"),
    ("condition", "time_emb_proj", "mc"),
    ("norm2", "norm2", "o"),
    ("conv2", "conv2", "ookk"),
]
SHORTCUT: list[Row] = [("shortcut", "conv_shortcut", "oiuu")]
ATTENTION: list[Row] = [
    ("norm", "group_norm", "o"),
    ("qkv", "to_q to_k to_v", "oo"),
    ("proj", "to_out.0", "oo"),
]
RESAMPLE: list[Row] = [("conv", "conv", "ookk")]
EMBEDDING: list[Row] = [("fc1", "linear_1", "cw"), ("fc2", "linear_2", "cc")]  # w: sinusoids of time
OUTSIDE: list[Row] = [  # x: channels of the image, y: that come out
    ("conv_in", "conv_in", "wxkk"),
    ("norm_out", "conv_norm_out", "w"),
    ("conv_out", "conv_out", "ywkk"),
]
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

NEEDED = ("block_out_channels", "down_block_types", "up_block_types")
ONLY = {
    "act_fn": "silu",
    "center_input_sample": False,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "time_embedding_type": "positional",
}
"""What the UNet computes where diffusers' config has a choice."""

FIELDS = {  # of diffusers' config: its default there, and the field of the UNet
    "in_channels": (3, "channels"),
    "layers_per_block": (2, "blocks"),
    "add_attention": (True, "middle_attention"),
    "attention_head_dim": (8, "head_dim"),
    "norm_num_groups": (32, "groups"),
    "norm_eps": (1e-5, "epsilon"),
    "downsample_padding": (1, "downsample_padding"),
    "dropout": (0.0, "dropout"),
    "freq_shift": (0, "frequency_shift"),
}
BLOCKS = {  # of diffusers' config: whether it has attention, and what resamples (None: as the config says elsewhere)
    "down": {
        "DownBlock2D": (False, "convolution"),
        "AttnDownBlock2D": (True, None),
        "ResnetDownsampleBlock2D": (False, "residual"),
    },
    "up": {
        "UpBlock2D": (False, "convolution"),
        "AttnUpBlock2D": (True, None),
        "ResnetUpsampleBlock2D": (False, "residual"),
    },
}
CONDITIONS = {None: "class", "timestep": "number", "identity": "vector"}
KINDS = {"conv": "convolution", "resnet": "residual"}

WHAT = "weights of a UNet2DModel"


def from_diffusers(state_dict: StateDict) -> dict:
    """UNet parameters from the state dict of `UNet2DModel`.

    Raises InputError where a name is missing or unknown, or a shape does not fit.
    """
    renamed = with_new_names(state_dict)
    return from_state_dict(_entries(_sizes(renamed, THEIRS, WHAT)), renamed, WHAT)


def to_diffusers(params: Mapping) -> StateDict:
    """State dict of `UNet2DModel` from UNet parameters.

    Raises InputError where the parameters are not those of a UNet.
    """
    what = "parameters of a UNet"
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    return to_state_dict(_entries(_sizes(flat, OURS, what)), params, what)


def sizes_from_config(config: Mapping) -> dict[str, Any]:
    """Constructor arguments of the UNet that diffusers' `config.json` (or `UNet2DModel.config`) describes.

    Raises InputError where the file lacks a size, or asks for what the UNet does not compute.
    """
    check_config(config, NEEDED, ONLY, "UNet2DModel")
    widths = tuple(config["block_out_channels"])
    sizes = {ours: config.get(theirs, default) for theirs, (default, ours) in FIELDS.items()}
    scale_shift = config.get("resnet_time_scale_shift", "default")
    if scale_shift not in ("default", "scale_shift"):
        raise InputError(f"resnet_time_scale_shift of a UNet2DModel is default or scale_shift, not {scale_shift!r}")
    middle_groups = config.get("attn_norm_num_groups") or (sizes["groups"] if scale_shift == "default" else None)
    if sizes["middle_attention"] and middle_groups != sizes["groups"]:
        raise InputError(
            f"attention in the middle of a UNet has a norm of {sizes['groups']} groups as everywhere, "
            f"not attn_norm_num_groups = {config.get('attn_norm_num_groups')}"
        )
    if (config.get("time_embedding_dim") or 4 * widths[0]) != 4 * widths[0]:
        raise InputError(f"time_embedding_dim of a UNet is {4 * widths[0]}, 4 times its first width")
    out = config.get("out_channels", 3)
    if out not in (sizes["channels"], 2 * sizes["channels"]):
        raise InputError(f"a UNet of {sizes['channels']} channels gives as many, or twice as many, not {out}")
    kind = config.get("class_embed_type")
    if kind not in CONDITIONS:
        raise InputError(f"class_embed_type of a UNet2DModel is one of {list(CONDITIONS)}, not {kind!r}")
    return (
        sizes
        | _blocks(config, len(widths))
        | {
            "widths": widths,
            "num_heads": 1,
            "scale_shift": scale_shift == "scale_shift",
            "condition": CONDITIONS[kind],
            "num_classes": (config.get("num_class_embeds") or 0) if kind is None else 0,
            "learned_variance": out != sizes["channels"],
            "sines_first": not config.get("flip_sin_to_cos", True),
        }
    )


def with_new_names(state_dict: StateDict) -> StateDict:
    """The same arrays, with the layers of an attention renamed where old files of diffusers call them otherwise."""
    old = re.compile(rf"(attentions\.\d+\.)({'|'.join(OLD_NAMES)})(?=\.)")
    return {old.sub(lambda m: m[1] + OLD_NAMES[m[2]], name): array for name, array in state_dict.items()}


def _blocks(config: Mapping, levels: int) -> dict[str, Any]:
    """Where there is attention, and what resamples: the same on the way down and up, and at all levels."""
    attention, resample = {}, set()
    for way, default in (("down", "downsample_type"), ("up", "upsample_type")):
        names = [name.removeprefix("UNetRes") for name in config[f"{way}_block_types"]]
        unknown = sorted(set(names) - BLOCKS[way].keys())
        if unknown or len(names) != levels:
            raise InputError(
                f"{way}_block_types of a UNet2DModel are {levels} of {', '.join(BLOCKS[way])}, not {', '.join(names)}"
            )
        names = names if way == "down" else names[::-1]
        attention[way] = tuple(level for level, name in enumerate(names) if BLOCKS[way][name][0])
        # The deepest level is neither halved nor what comes from halving it doubled.
        resampling = names[:-1] if way == "down" else names[1:]
        general = KINDS.get(config.get(default) or "conv")
        resample |= {BLOCKS[way][name][1] or general for name in resampling}
    if attention["down"] != attention["up"]:
        raise InputError(
            f"a UNet has attention at the same levels down and up, not at {attention['down']} and {attention['up']}"
        )
    if len(resample) > 1 or None in resample:
        raise InputError("a UNet resamples by convolutions everywhere, or everywhere in residual blocks")
    return {"attention_levels": attention["down"], "resample": resample.pop() if resample else "convolution"}


@dataclass(frozen=True)
class _Names:
    """Where the sizes of a U-Net can be read off: names of biases, of a block at a level where there are braces."""

    residual: str
    attention: str
    resample: str
    middle_attention: str
    modulation: str
    table: str
    number: str
    conv_in: str
    conv_out: str
    channels: int
    """Axis of the image's channels in the weight of conv_in."""


OURS = _Names(
    residual="down_{}_residual_{}.conv1.bias",
    attention="down_{}_attention_0.proj.bias",
    resample="down_0_resample.conv1.bias",
    middle_attention="middle_attention.proj.bias",
    modulation="down_0_residual_0.condition.bias",
    table="condition_embedder.embedding",
    number="condition_embedder.fc1.bias",
    conv_in="conv_in.kernel",
    conv_out="conv_out.bias",
    channels=2,
)
THEIRS = _Names(
    residual="down_blocks.{}.resnets.{}.conv1.bias",
    attention="down_blocks.{}.attentions.0.to_out.0.bias",
    resample="down_blocks.0.downsamplers.0.conv1.bias",
    middle_attention="mid_block.attentions.0.to_out.0.bias",
    modulation="down_blocks.0.resnets.0.time_emb_proj.bias",
    table="class_embedding.weight",
    number="class_embedding.linear_1.bias",
    conv_in="conv_in.weight",
    conv_out="conv_out.bias",
    channels=1,
)


class _Sizes(NamedTuple):
    widths: list[int]
    blocks: int
    attention_levels: set[int]
    middle_attention: bool
    resample_residual: bool
    pieces: int
    """Vectors by which the condition modulates a block: 2 where it scales and shifts."""
    rows: int | None
    """Of the table of classes."""
    number: bool
    """Whether the condition is a number."""
    channels: int
    out: int


def _sizes(arrays: StateDict, names: _Names, what: str) -> _Sizes:
    def count(name: Callable[[int], str]) -> int:
        return next(number for number in itertools.count() if name(number) not in arrays)

    levels = count(lambda level: names.residual.format(level, 0))
    told = (names.residual.format(0, 0), names.modulation, names.conv_in, names.conv_out)
    missing = [name for name in told if name not in arrays]
    if missing:
        raise InputError(f"these are not {what} that genjax knows: missing {', '.join(missing)}")
    widths = [len(arrays[names.residual.format(level, 0)]) for level in range(levels)]
    return _Sizes(
        widths,
        blocks=count(lambda i: names.residual.format(0, i)),
        attention_levels={level for level in range(levels) if names.attention.format(level) in arrays},
        middle_attention=names.middle_attention in arrays,
        resample_residual=names.resample in arrays,
        pieces=max(1, len(arrays[names.modulation]) // widths[0]),
        rows=len(arrays[names.table]) if names.table in arrays else None,
        number=names.number in arrays,
        channels=arrays[names.conv_in].shape[names.channels],
        out=len(arrays[names.conv_out]),
    )


def _entries(sizes: _Sizes) -> Iterator[Entry]:
    """All leaves of a U-Net: the walk of the network itself, with the channels that each block sees."""
    widths, first = sizes.widths, sizes.widths[0]
    letters = dict(w=first, c=4 * first, x=sizes.channels, y=sizes.out, k=3, u=1)

    def residual(ours, theirs, into, out):
        table = RESIDUAL + SHORTCUT * (into != out)
        yield from entries(table, f"{ours}.", f"{theirs}.", letters | dict(i=into, o=out, m=sizes.pieces * out))

    def plain(table, ours, theirs, width):
        yield from entries(table, f"{ours}.", f"{theirs}.", letters | dict(o=width))

    def resample(ours, theirs, width):
        if sizes.resample_residual:
            yield from residual(ours, theirs, width, width)
        else:
            yield from plain(RESAMPLE, ours, theirs, width)

    yield from entries(OUTSIDE, "", "", letters)
    yield from entries(EMBEDDING, "t_embedder.", "time_embedding.", letters)
    if sizes.number:
        yield from entries(EMBEDDING, "condition_embedder.", "class_embedding.", letters)
    if sizes.rows is not None:
        yield Entry("condition_embedder.embedding", ("class_embedding.weight",), (sizes.rows, 4 * first))

    left, x, deepest = [first], first, len(widths) - 1
    for level, width in enumerate(widths):
        theirs = f"down_blocks.{level}"
        for i in range(sizes.blocks):
            yield from residual(f"down_{level}_residual_{i}", f"{theirs}.resnets.{i}", x, width)
            if level in sizes.attention_levels:
                yield from plain(ATTENTION, f"down_{level}_attention_{i}", f"{theirs}.attentions.{i}", width)
            left.append(x := width)
        if level < deepest:
            yield from resample(f"down_{level}_resample", f"{theirs}.downsamplers.0", width)
            left.append(width)

    yield from residual("middle_residual_0", "mid_block.resnets.0", x, x)
    if sizes.middle_attention:
        yield from plain(ATTENTION, "middle_attention", "mid_block.attentions.0", x)
    yield from residual("middle_residual_1", "mid_block.resnets.1", x, x)

    for level, width in reversed(list(enumerate(widths))):
        theirs = f"up_blocks.{deepest - level}"
        for i in range(sizes.blocks + 1):
            yield from residual(f"up_{level}_residual_{i}", f"{theirs}.resnets.{i}", x + left.pop(), width)
            if level in sizes.attention_levels:
                yield from plain(ATTENTION, f"up_{level}_attention_{i}", f"{theirs}.attentions.{i}", width)
            x = width
        if level:
            yield from resample(f"up_{level}_resample", f"{theirs}.upsamplers.0", width)
