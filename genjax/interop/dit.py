"""DiT weights: genjax's DiT <-> `diffusers.DiTTransformer2DModel`, whose files are facebook/DiT-XL-2-256 and -512.

The map is the tables below. Beside the usual turns of matrices, diffusers stores the embeddings of time and class in
every block, copies of one another: here they are once, and copies that differ are refused. Both directions are exact,
and every name and shape must fit.

diffusers computes its network otherwise than it was published and trained in two places: the frequencies of time are
10000^(-i / 127), not 10000^(-i / 128), and the norm before each MLP has the epsilon of the config, 1e-5, not 1e-6.
`sizes_from_config` gives what diffusers computes. For what was published: `DiT(**sizes_from_config(c) | PUBLISHED)`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop.tables import (
    Entry,
    Row,
    StateDict,
    check_config,
    check_names,
    entries,
    from_state_dict,
    layers_in,
    to_state_dict,
)

__all__ = ["PUBLISHED", "from_diffusers", "sizes_from_config", "to_diffusers"]

PUBLISHED: dict[str, Any] = {"frequency_shift": 0, "norm_epsilon": 1e-6}
"""Fields of the DiT with which facebook's weights were trained."""

OUTSIDE: list[Row] = [  # d: width, f: twice that, p: numbers that come out for a patch
    ("final_modulation.linear", "proj_out_1", "fd"),
    ("final_linear", "proj_out_2", "pd"),
]
BLOCK: list[Row] = [  # s: six times the width, m: four times
    ("modulation.linear", "norm1.linear", "sd"),
    ("attn.qkv", "attn1.to_q attn1.to_k attn1.to_v", "dd"),
    ("attn.proj", "attn1.to_out.0", "dd"),
    ("mlp.fc1", "ff.net.0.proj", "md"),
    ("mlp.fc2", "ff.net.2", "dm"),
]
EMBEDDERS = "transformer_blocks.0.norm1.emb."
COPIED: list[Row] = [  # in every block; t: sinusoids of time
    ("t_embedder.fc1", "timestep_embedder.linear_1", "dt"),
    ("t_embedder.fc2", "timestep_embedder.linear_2", "dd"),
]
TABLE = ("y_embedder.embedding", "class_embedder.embedding_table.weight")

NEEDED = {  # of diffusers' config, and the fields of the DiT
    "in_channels": "channels",
    "patch_size": "patch_size",
    "num_layers": "depth",
    "num_attention_heads": "num_heads",
    "attention_head_dim": "head_dim",
}
ONLY = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "dropout": 0.0,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
    "upcast_attention": False,
}
"""What the DiT computes where diffusers' config has a choice."""


WHAT = "weights of a DiTTransformer2DModel"


def from_diffusers(state_dict: StateDict) -> dict:
    """DiT parameters from the state dict of `DiTTransformer2DModel`.

    Raises InputError where a name is missing or unknown, a shape does not fit, or the embeddings of two blocks differ.
    """
    depth = layers_in(state_dict, "transformer_blocks.")
    names = [name for entry in _entries(_Sizes(depth)) for name in entry.theirs]
    copies = [(name, copy) for name in names for copy in _copies(name, depth)]
    check_names(state_dict, {*names, *(copy for _, copy in copies)}, WHAT)
    for name, copy in copies:
        if not np.array_equal(state_dict[name], state_dict[copy]):
            raise InputError(f"{copy} is no copy of {name}: a DiT has one embedding of time and class for all blocks")
    width, channels, patch_size, _ = state_dict["pos_embed.proj.weight"].shape
    pixels, rows = (len(state_dict[name]) for name in ("proj_out_2.bias", EMBEDDERS + TABLE[1]))
    sizes = _Sizes(depth, width, channels, patch_size, pixels, rows)
    return from_state_dict(_entries(sizes), {name: state_dict[name] for name in names}, WHAT)


def to_diffusers(params: Mapping, *, patch_size: int) -> StateDict:
    """State dict of `DiTTransformer2DModel` from DiT parameters, with the size of patches that they do not show.

    Raises InputError where the parameters are not those of a DiT with classes.
    """
    shapes = {name: np.shape(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    what = "parameters of a DiT with classes"
    check_names(shapes, {entry.ours for entry in _entries(_Sizes(1))}, what)
    depth, width = shapes["blocks.attn.proj.bias"]
    channels, rest = divmod(shapes["x_embedder.kernel"][0], patch_size**2)
    if rest:
        raise InputError(
            f"patches of {shapes['x_embedder.kernel'][0]} numbers are not {patch_size} pixels high and wide"
        )
    pixels, rows = shapes["final_linear.bias"][0], shapes[TABLE[0]][0]
    state_dict = to_state_dict(_entries(_Sizes(depth, width, channels, patch_size, pixels, rows)), params, what)
    copies = {copy: array.copy() for name, array in state_dict.items() for copy in _copies(name, depth)}
    return state_dict | copies


def sizes_from_config(config: Mapping) -> dict[str, Any]:
    """Constructor arguments of the DiT that diffusers' `config.json` describes; see the module about `PUBLISHED`.

    Raises InputError where the file lacks a size, or asks for what the DiT does not compute.
    """
    what = "DiTTransformer2DModel"
    check_config(config, NEEDED, ONLY, what)
    channels = config["in_channels"]
    out = config.get("out_channels") or channels
    if out not in (channels, 2 * channels):
        raise InputError(f"the config of a {what} has {out} channels out of {channels}; genjax knows as many, or twice")
    return {ours: config[theirs] for theirs, ours in NEEDED.items()} | {
        "num_classes": config.get("num_embeds_ada_norm", 1000),
        "learned_variance": out != channels,
        "frequency_shift": 1,
        "norm_epsilon": config.get("norm_eps", 1e-5),
    }


class _Sizes(NamedTuple):
    """Of the arrays; names follow from the depth alone."""

    depth: int
    width: int = 0
    channels: int = 0
    patch_size: int = 0
    pixels: int = 0
    rows: int = 0


def _entries(sizes: _Sizes) -> Iterator[Entry]:
    """All leaves of a DiT; what every block stores is taken from the first."""
    width = sizes.width
    letters = dict(d=width, f=2 * width, m=4 * width, s=6 * width, t=256, p=sizes.pixels)
    patches = (width, sizes.channels, sizes.patch_size, sizes.patch_size)
    yield Entry("x_embedder.kernel", ("pos_embed.proj.weight",), patches, "patches")
    yield Entry("x_embedder.bias", ("pos_embed.proj.bias",), (width,))
    yield Entry(TABLE[0], (EMBEDDERS + TABLE[1],), (sizes.rows, width))
    yield from entries(COPIED, "", EMBEDDERS, letters)
    yield from entries(OUTSIDE, "", "", letters)
    for i in range(sizes.depth):
        yield from entries(BLOCK, "blocks.", f"transformer_blocks.{i}.", letters, i)


def _copies(name: str, depth: int) -> list[str]:
    """The names of the copies in the other blocks of what the first block stores for all."""
    if not name.startswith(EMBEDDERS):
        return []
    return [f"transformer_blocks.{i}.{name.removeprefix('transformer_blocks.0.')}" for i in range(1, depth)]
