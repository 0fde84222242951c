"""Stable Diffusion 3 and 3.5 transformer weights: genjax's MM-DiT <-> diffusers <-> the released original layout.

The map is the table below: a module of genjax and its names in `diffusers.SD3Transformer2DModel` and in the files of
Stability AI (pairs as in diffusers' `convert_sd3_to_diffusers.py`). Only the layout differs:

    linear weights       (out, in) in torch, (in, out) here
    query, key, value    three matrices in diffusers, one in the original and here
    patch embedding      a convolution (out, channel, row, column) there, linear in (row, column, channel) here
    adaLN of two pieces  (scale, shift) in diffusers, (shift, scale) in the original and here
    blocks               numbered there, stacked here: `dual_blocks`, then `blocks`, then `last_block` alone
    position embedding   a stored buffer there, computed here

Arrays are moved, never computed with, and keep their type: both directions are exact. Keys must match exactly.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop.tables import (
    Entry,
    Row,
    StateDict,
    check_names,
    entries,
    from_state_dict,
    layers_in,
    to_state_dict,
)
from genjax.nn.embeddings import sincos_2d_centre_crop

__all__ = [
    "Layout",
    "config_for_diffusers",
    "from_diffusers",
    "from_original",
    "sizes_from_diffusers",
    "sizes_from_original",
    "table_for_diffusers",
    "to_diffusers",
    "to_original",
]

X_EMBEDDER = ("x_embedder", "pos_embed.proj", "x_embedder.proj")
OUTSIDE = [  # genjax, diffusers, original; w: width, c: of the context, y: of the pooled vector, t: sinusoids of time
    ("context_embedder", "context_embedder", "context_embedder", "wc"),
    ("t_embedder.fc1", "time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0", "wt"),
    ("t_embedder.fc2", "time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2", "ww"),
    ("y_embedder.fc1", "time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0", "wy"),
    ("y_embedder.fc2", "time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2", "ww"),
    ("final_modulation.linear", "norm_out.linear", "final_layer.adaLN_modulation.1", "2w"),
    ("final_linear", "proj_out", "final_layer.linear", "pw"),  # p: numbers that come out for a patch
]
BLOCK = [  # the same, inside a block; several names are pieces of one matrix, each q long. m: width inside the MLP
    ("image.modulation.linear", "norm1.linear", "x_block.adaLN_modulation.1", "iw"),  # i and j: six, nine or two widths
    ("image.attn.qkv", "attn.to_q attn.to_k attn.to_v", "x_block.attn.qkv", "qw"),
    ("image.attn.norm_q", "attn.norm_q", "x_block.attn.ln_q", "h"),  # h: width of a head
    ("image.attn.norm_k", "attn.norm_k", "x_block.attn.ln_k", "h"),
    ("image.attn.proj", "attn.to_out.0", "x_block.attn.proj", "ww"),
    ("image.attn2.qkv", "attn2.to_q attn2.to_k attn2.to_v", "x_block.attn2.qkv", "qw"),
    ("image.attn2.norm_q", "attn2.norm_q", "x_block.attn2.ln_q", "h"),
    ("image.attn2.norm_k", "attn2.norm_k", "x_block.attn2.ln_k", "h"),
    ("image.attn2.proj", "attn2.to_out.0", "x_block.attn2.proj", "ww"),
    ("image.mlp.fc1", "ff.net.0.proj", "x_block.mlp.fc1", "mw"),
    ("image.mlp.fc2", "ff.net.2", "x_block.mlp.fc2", "wm"),
    ("context.modulation.linear", "norm1_context.linear", "context_block.adaLN_modulation.1", "jw"),
    ("context.attn.qkv", "attn.add_q_proj attn.add_k_proj attn.add_v_proj", "context_block.attn.qkv", "qw"),
    ("context.attn.norm_q", "attn.norm_added_q", "context_block.attn.ln_q", "h"),
    ("context.attn.norm_k", "attn.norm_added_k", "context_block.attn.ln_k", "h"),
    ("context.attn.proj", "attn.to_add_out", "context_block.attn.proj", "ww"),
    ("context.mlp.fc1", "ff_context.net.0.proj", "context_block.mlp.fc1", "mw"),
    ("context.mlp.fc2", "ff_context.net.2", "context_block.mlp.fc2", "wm"),
]


@dataclass(frozen=True)
class Layout:
    """One foreign column of the table."""

    column: int
    prefix: str
    blocks: str
    pos_embed: str
    qkv: int
    """How many widths long what holds queries, keys or values is."""
    swapped: tuple[str, ...]


DIFFUSERS = Layout(
    column=1,
    prefix="",
    blocks="transformer_blocks",
    pos_embed="pos_embed.pos_embed",
    qkv=1,
    swapped=("last_block.context.modulation.linear", "final_modulation.linear"),
)
ORIGINAL = Layout(
    column=2, prefix="model.diffusion_model.", blocks="joint_blocks", pos_embed="pos_embed", qkv=3, swapped=()
)
WHAT, OURS = "SD3 transformer weights", "MMDiT parameters"


def from_diffusers(state_dict: StateDict) -> dict:
    """MMDiT parameters from the state dict of `SD3Transformer2DModel`.

    Raises InputError where a key is missing or unknown, shapes of one kind differ between blocks, or the position
    embedding is not the computed one.
    """
    return _import(state_dict, DIFFUSERS)


def from_original(state_dict: StateDict) -> dict:
    """MMDiT parameters from a released SD3 file; raises as `from_diffusers`.

    Keys that are not under `model.diffusion_model.` (VAE, text encoders) belong to other networks and are passed over.
    """
    return _import(state_dict, ORIGINAL)


def to_diffusers(params: Mapping, *, patch_size: int, pos_embed_max_size: int, pos_embed_base_size: int) -> StateDict:
    """State dict of `SD3Transformer2DModel` from MMDiT parameters, with the sizes of that MMDiT they do not show.

    Raises InputError where the parameters are not those of an MMDiT.
    """
    return _export(params, DIFFUSERS, patch_size, pos_embed_max_size, pos_embed_base_size)


def to_original(params: Mapping, *, patch_size: int, pos_embed_max_size: int, pos_embed_base_size: int) -> StateDict:
    """The transformer's part of an original SD3 file from MMDiT parameters; arguments and errors as `to_diffusers`."""
    return _export(params, ORIGINAL, patch_size, pos_embed_max_size, pos_embed_base_size)


def sizes_from_diffusers(state_dict: StateDict, *, head_dim: int = 64) -> dict[str, int | bool]:
    """Constructor arguments of the MMDiT that a state dict of `SD3Transformer2DModel` fits.

    `head_dim` counts where there is no qk-norm, whose shape would tell: all released models have 64. Raises InputError
    where a key is missing or unknown.
    """
    return _sizes(state_dict, DIFFUSERS, head_dim)


def sizes_from_original(state_dict: StateDict, *, head_dim: int = 64) -> dict[str, int | bool]:
    """As `sizes_from_diffusers`, for a released SD3 file."""
    return _sizes(state_dict, ORIGINAL, head_dim)


def table_for_diffusers(params: Mapping, *, patch_size: int) -> list[Entry]:
    """Which arrays of `SD3Transformer2DModel` each leaf of MMDiT parameters is, or of as many shapes.

    Raises InputError where the parameters are not those of an MMDiT.
    """
    return list(_entries(DIFFUSERS, _held(params, DIFFUSERS, patch_size)))


def config_for_diffusers(state_dict: StateDict, sizes: Mapping[str, int | bool]) -> dict[str, Any]:
    """The `config.json` of the `SD3Transformer2DModel` that a state dict of its own layout and an MMDiT's sizes are."""
    told = _read(state_dict, DIFFUSERS)
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": sizes["pos_embed_base_size"] * told.patch[1],
        "patch_size": told.patch[1],
        "in_channels": told.patch[0],
        "out_channels": told.out // told.patch[1] ** 2,
        "num_layers": told.depth,
        "attention_head_dim": sizes["head_dim"],
        "num_attention_heads": sizes["num_heads"],
        "joint_attention_dim": told.context,
        "caption_projection_dim": told.width,
        "pooled_projection_dim": told.pooled,
        "pos_embed_max_size": sizes["pos_embed_max_size"],
        "dual_attention_layers": list(range(told.dual)),
        "qk_norm": "rms_norm" if told.qk_norm else None,
    }


class _Sizes(NamedTuple):
    """Of the arrays; names follow from the first three."""

    depth: int
    dual: int
    qk_norm: bool
    patch: tuple[int, int] = (0, 0)
    """Channels, and pixels of a side."""
    out: int = 0
    width: int = 0
    context: int = 0
    pooled: int = 0
    sinusoids: int = 0
    head: int = 0
    hidden: int = 0


def _entries(layout: Layout, sizes: _Sizes) -> Iterator[Entry]:
    """All leaves of an MM-DiT but its position embedding, which has none here."""
    depth, width = sizes.depth, sizes.width
    channels, side = sizes.patch
    letters = dict(w=width, c=sizes.context, y=sizes.pooled, t=sizes.sinusoids, p=sizes.out, h=sizes.head)
    letters |= {"m": sizes.hidden, "q": layout.qkv * width, "2": 2 * width}
    ours, theirs = X_EMBEDDER[0], layout.prefix + X_EMBEDDER[layout.column]
    yield Entry(f"{ours}.kernel", (f"{theirs}.weight",), (width, channels, side, side), "patches")
    yield Entry(f"{ours}.bias", (f"{theirs}.bias",), (width,))

    def rows(table: list, kept) -> list[Row]:
        return [(row[0], row[layout.column], row[3]) for row in table if kept(row[0])]

    yield from _with_biases(rows(OUTSIDE, lambda name: True), "", layout.prefix, letters, None, layout)
    dual_stack = min(sizes.dual, depth - 1)
    for i in range(depth):
        stack, index = ("dual_blocks.", i) if i < dual_stack else ("blocks.", i - dual_stack)
        if i == depth - 1:
            stack, index = "last_block.", None
        absent = ["attn2"] * (i >= sizes.dual) + ["norm_"] * (not sizes.qk_norm)
        absent += ["context.attn.proj", "context.mlp"] * (i == depth - 1)
        pieces = {"i": (9 if i < sizes.dual else 6) * width, "j": (2 if i == depth - 1 else 6) * width}
        table = rows(BLOCK, lambda name, absent=absent: not any(part in name for part in absent))
        block = f"{layout.prefix}{layout.blocks}.{i}."
        yield from _with_biases(table, stack, block, letters | pieces, index, layout)


def _with_biases(
    table: list[Row], ours: str, theirs: str, letters: Mapping[str, int], index: int | None, layout: Layout
) -> Iterator[Entry]:
    """The entries of a table; norms have no bias."""
    for row in table:
        biases = len(row[2]) > 1
        yield from entries([row], ours, theirs, letters, index, biases=biases, swapped=layout.swapped)


def _own(state_dict: StateDict, layout: Layout) -> dict[str, np.ndarray]:
    return {name: state_dict[name] for name in state_dict if name.startswith(layout.prefix)}


def _import(state_dict: StateDict, layout: Layout) -> dict:
    weights = _own(state_dict, layout)
    told = _read(weights, layout)
    stored = np.asarray(weights.pop(layout.prefix + layout.pos_embed), np.float32)
    max_size, base_size = _grid(stored)
    computed = _pos_embed(stored.shape[-1], max_size, base_size)
    if not np.allclose(stored, computed, atol=5e-3):  # the rounding of bfloat16
        raise InputError(
            f"{layout.prefix + layout.pos_embed} is not the sines and cosines of a grid of side "
            f"{max_size}, which genjax computes: other position embeddings are not supported"
        )
    return from_state_dict(_entries(layout, told), weights, WHAT)


def _export(params: Mapping, layout: Layout, patch_size: int, max_size: int, base_size: int) -> StateDict:
    sizes = _held(params, layout, patch_size)
    state_dict = to_state_dict(_entries(layout, sizes), params, OURS)
    return state_dict | {layout.prefix + layout.pos_embed: _pos_embed(sizes.width, max_size, base_size)}


def _held(params: Mapping, layout: Layout, patch_size: int) -> _Sizes:
    """The sizes of MMDiT parameters whose names are all there, and no others."""
    flat = {name: np.shape(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    stacks = [flat.get(f"{name}.image.attn.qkv.bias", (0,))[0] for name in ("dual_blocks", "blocks")]
    dual = stacks[0] + any(name.startswith("last_block.image.attn2.") for name in flat)
    named = _Sizes(sum(stacks) + 1, dual, any(".norm_q." in name for name in flat))
    check_names(flat, {entry.ours for entry in _entries(layout, named)}, OURS)
    inputs, width = flat["x_embedder.kernel"]
    return named._replace(
        patch=(inputs // patch_size**2, patch_size),
        out=flat["final_linear.bias"][0],
        width=width,
        context=flat["context_embedder.kernel"][0],
        pooled=flat["y_embedder.fc1.kernel"][0],
        sinusoids=flat["t_embedder.fc1.kernel"][0],
        head=flat["last_block.image.attn.norm_q.scale"][0] if named.qk_norm else 0,
        hidden=flat["last_block.image.mlp.fc1.bias"][0],
    )


def _read(weights: StateDict, layout: Layout) -> _Sizes:
    """The sizes of arrays whose names are all there, and no others."""
    depth = layers_in(weights, f"{layout.prefix}{layout.blocks}.")
    dual = len({name.split(".attn2.")[0] for name in weights if ".attn2." in name})
    qk_norm = any(name.endswith((".norm_q.weight", ".ln_q.weight")) for name in weights)
    named = _Sizes(depth, dual, qk_norm)
    first_names = {entry.ours: entry.theirs[0] for entry in _entries(layout, named)}
    expected = {name for entry in _entries(layout, named) for name in entry.theirs}
    check_names(weights, expected | {layout.prefix + layout.pos_embed}, WHAT)

    def shape(ours: str) -> tuple[int, ...]:
        return weights[first_names[ours]].shape

    width, channels, side, *_ = (*shape("x_embedder.kernel"), 0, 0, 0)
    return named._replace(
        patch=(channels, side),
        out=shape("final_linear.bias")[0],
        width=width,
        context=shape("context_embedder.kernel")[-1],
        pooled=shape("y_embedder.fc1.kernel")[-1],
        sinusoids=shape("t_embedder.fc1.kernel")[-1],
        head=shape("last_block.image.attn.norm_q.scale")[0] if qk_norm else 0,
        hidden=shape("last_block.image.mlp.fc1.bias")[0],
    )


def _sizes(state_dict: StateDict, layout: Layout, head_dim: int) -> dict[str, int | bool]:
    weights = _own(state_dict, layout)
    told = _read(weights, layout)
    channels, patch_size = told.patch
    head_dim = told.head or head_dim
    max_size, base_size = _grid(weights[layout.prefix + layout.pos_embed])
    return {
        "channels": channels,
        "patch_size": patch_size,
        "depth": told.depth,
        "num_heads": told.width // head_dim,
        "head_dim": head_dim,
        "qk_norm": told.qk_norm,
        "dual_attention_layers": told.dual,
        "pos_embed_max_size": max_size,
        "pos_embed_base_size": base_size,
    }


def _grid(pos_embed: np.ndarray) -> tuple[int, int]:
    """Sides of the grid of a stored position embedding (1, places, width), and of the one that its unit is."""
    max_size, width = round(pos_embed.shape[1] ** 0.5), pos_embed.shape[-1]
    # Column 1 holds [sin p, ...] with p = base_size / max_size, and cos p a quarter of the channels later.
    sine, cosine = np.asarray(pos_embed, np.float64)[0, min(1, max_size - 1), [0, width // 4]]
    return max_size, max(1, round(max_size * np.arctan2(sine, cosine)))


def _pos_embed(width: int, max_size: int, base_size: int) -> np.ndarray:
    return sincos_2d_centre_crop(max_size, max_size, width, max_size=max_size, base_size=base_size)[None]
