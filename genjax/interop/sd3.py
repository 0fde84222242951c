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

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.errors import InputError
from genjax.interop.tables import StateDict, check_names
from genjax.nn.embeddings import sincos_2d_centre_crop

__all__ = [
    "Entry",
    "Layout",
    "StateDict",
    "from_diffusers",
    "from_original",
    "sizes_from_diffusers",
    "sizes_from_original",
    "to_diffusers",
    "to_original",
]

OUTSIDE = [  # genjax, diffusers, original
    ("x_embedder", "pos_embed.proj", "x_embedder.proj"),
    ("context_embedder", "context_embedder", "context_embedder"),
    ("t_embedder.fc1", "time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("t_embedder.fc2", "time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("y_embedder.fc1", "time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("y_embedder.fc2", "time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("final_modulation.linear", "norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("final_linear", "proj_out", "final_layer.linear"),
]
BLOCK = [  # the same, inside a block; several names are pieces of one matrix
    ("image.modulation.linear", "norm1.linear", "x_block.adaLN_modulation.1"),
    ("image.attn.qkv", "attn.to_q attn.to_k attn.to_v", "x_block.attn.qkv"),
    ("image.attn.norm_q", "attn.norm_q", "x_block.attn.ln_q"),
    ("image.attn.norm_k", "attn.norm_k", "x_block.attn.ln_k"),
    ("image.attn.proj", "attn.to_out.0", "x_block.attn.proj"),
    ("image.attn2.qkv", "attn2.to_q attn2.to_k attn2.to_v", "x_block.attn2.qkv"),
    ("image.attn2.norm_q", "attn2.norm_q", "x_block.attn2.ln_q"),
    ("image.attn2.norm_k", "attn2.norm_k", "x_block.attn2.ln_k"),
    ("image.attn2.proj", "attn2.to_out.0", "x_block.attn2.proj"),
    ("image.mlp.fc1", "ff.net.0.proj", "x_block.mlp.fc1"),
    ("image.mlp.fc2", "ff.net.2", "x_block.mlp.fc2"),
    ("context.modulation.linear", "norm1_context.linear", "context_block.adaLN_modulation.1"),
    ("context.attn.qkv", "attn.add_q_proj attn.add_k_proj attn.add_v_proj", "context_block.attn.qkv"),
    ("context.attn.norm_q", "attn.norm_added_q", "context_block.attn.ln_q"),
    ("context.attn.norm_k", "attn.norm_added_k", "context_block.attn.ln_k"),
    ("context.attn.proj", "attn.to_add_out", "context_block.attn.proj"),
    ("context.mlp.fc1", "ff_context.net.0.proj", "context_block.mlp.fc1"),
    ("context.mlp.fc2", "ff_context.net.2", "context_block.mlp.fc2"),
]


@dataclass(frozen=True)
class Layout:
    """One foreign column of the table."""

    column: int
    prefix: str
    blocks: str
    pos_embed: str
    swapped: tuple[str, ...]


DIFFUSERS = Layout(
    column=1,
    prefix="",
    blocks="transformer_blocks",
    pos_embed="pos_embed.pos_embed",
    swapped=("last_block.context.modulation.linear", "final_modulation.linear"),
)
ORIGINAL = Layout(column=2, prefix="model.diffusion_model.", blocks="joint_blocks", pos_embed="pos_embed", swapped=())


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


@dataclass(frozen=True)
class Entry:
    """One leaf of the parameters (at `index` of its stack) and the foreign keys that hold it."""

    ours: str
    index: int | None
    theirs: tuple[str, ...]
    swap: bool

    def join(self, pieces: list[np.ndarray]) -> np.ndarray:
        leaf = np.concatenate([_TO_OURS[min(piece.ndim, 4)](piece) for piece in pieces], axis=-1)
        return _swap_halves(leaf) if self.swap else leaf

    def split(self, leaf: np.ndarray, patch_size: int) -> list[np.ndarray]:
        leaf = _swap_halves(leaf) if self.swap else leaf
        if self.ours == "x_embedder.kernel":
            return [leaf.reshape(patch_size, patch_size, -1, leaf.shape[-1]).transpose(3, 2, 0, 1)]
        return [piece.T for piece in np.split(leaf, len(self.theirs), axis=-1)]


_TO_OURS = {
    1: lambda vector: vector,
    2: np.transpose,
    4: lambda conv_OCPQ: conv_OCPQ.transpose(2, 3, 1, 0).reshape(-1, conv_OCPQ.shape[0]),
}


def _swap_halves(leaf: np.ndarray) -> np.ndarray:
    return np.roll(leaf, leaf.shape[-1] // 2, axis=-1)


def _entries(layout: Layout, depth: int, dual: int, qk_norm: bool) -> Iterator[Entry]:
    """All leaves of an MM-DiT of `depth` blocks, the first `dual` of them with a second attention."""
    for row in OUTSIDE:
        yield from _leaves(layout, row, "", None, "")
    dual_stack = min(dual, depth - 1)
    for i in range(depth):
        stack, index = ("dual_blocks.", i) if i < dual_stack else ("blocks.", i - dual_stack)
        if i == depth - 1:
            stack, index = "last_block.", None
        absent = ["attn2"] * (i >= dual) + ["norm_"] * (not qk_norm)
        absent += ["context.attn.proj", "context.mlp"] * (i == depth - 1)
        for row in BLOCK:
            if not any(name in row[0] for name in absent):
                yield from _leaves(layout, row, stack, index, f"{layout.blocks}.{i}.")


def _leaves(layout: Layout, row: tuple[str, str, str], stack: str, index: int | None, block: str) -> Iterator[Entry]:
    module = stack + row[0]
    for ours, theirs in [("scale", "weight")] if "norm_" in module else [("kernel", "weight"), ("bias", "bias")]:
        names = tuple(f"{layout.prefix}{block}{name}.{theirs}" for name in row[layout.column].split())
        yield Entry(f"{module}.{ours}", index, names, module in layout.swapped)


def _import(state_dict: StateDict, layout: Layout) -> dict:
    sizes = _sizes(state_dict, layout, head_dim=1)
    stored = np.asarray(state_dict[layout.prefix + layout.pos_embed], np.float32)
    computed = _pos_embed(stored.shape[-1], sizes["pos_embed_max_size"], sizes["pos_embed_base_size"])
    if not np.allclose(stored, computed, atol=5e-3):  # the rounding of bfloat16
        raise InputError(
            f"{layout.prefix + layout.pos_embed} is not the sines and cosines of a grid of side "
            f"{sizes['pos_embed_max_size']}, which genjax computes: other position embeddings are not supported"
        )
    leaves = defaultdict(list)
    for entry in _entries(layout, sizes["depth"], sizes["dual_attention_layers"], sizes["qk_norm"]):
        leaves[entry.ours, entry.index is None].append(entry.join([state_dict[name] for name in entry.theirs]))
    for (name, _), blocks in leaves.items():
        if len({leaf.shape for leaf in blocks}) > 1:
            raise InputError(f"{name} has other shapes in other blocks: {sorted({leaf.shape for leaf in blocks})}")
    flat = {name: blocks[0] if alone else np.stack(blocks) for (name, alone), blocks in leaves.items()}
    return unflatten_dict(flat, sep=".")


def _export(params: Mapping, layout: Layout, patch_size: int, max_size: int, base_size: int) -> StateDict:
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    stacks = [len(flat.get(f"{name}.image.attn.qkv.bias", ())) for name in ("dual_blocks", "blocks")]
    dual = stacks[0] + any(name.startswith("last_block.image.attn2.") for name in flat)
    entries = list(_entries(layout, sum(stacks) + 1, dual, any(".norm_q." in name for name in flat)))
    check_names(flat, {entry.ours for entry in entries}, "MMDiT parameters")
    state_dict = {}
    for entry in entries:
        leaf = flat[entry.ours] if entry.index is None else flat[entry.ours][entry.index]
        state_dict.update(zip(entry.theirs, entry.split(leaf, patch_size), strict=True))
    width = flat["x_embedder.bias"].shape[-1]
    state_dict[layout.prefix + layout.pos_embed] = _pos_embed(width, max_size, base_size)
    return {name: np.asarray(array, order="C") for name, array in state_dict.items()}


def _sizes(state_dict: StateDict, layout: Layout, head_dim: int) -> dict[str, int | bool]:
    state_dict = {name: array for name, array in state_dict.items() if name.startswith(layout.prefix)}
    start = f"{layout.prefix}{layout.blocks}."
    numbers = [name.removeprefix(start).split(".")[0] for name in state_dict if name.startswith(start)]
    depth = 1 + max((int(number) for number in numbers if number.isdigit()), default=0)
    dual = len({name.split(".attn2.")[0] for name in state_dict if ".attn2." in name})
    qk_norm = any(name.endswith((".norm_q.weight", ".ln_q.weight")) for name in state_dict)
    entries = list(_entries(layout, depth, dual, qk_norm))
    pos_embed = layout.prefix + layout.pos_embed
    expected = {name for entry in entries for name in entry.theirs} | {pos_embed}
    check_names(state_dict, expected, "SD3 transformer weights")

    key_of = {entry.ours: entry.theirs[0] for entry in entries}
    width, channels, patch_size, _ = state_dict[key_of["x_embedder.kernel"]].shape
    if qk_norm:
        head_dim = len(state_dict[key_of["last_block.image.attn.norm_q.scale"]])
    max_size = round(state_dict[pos_embed].shape[1] ** 0.5)
    # Column 1 holds [sin p, ...] with p = base_size / max_size, and cos p a quarter of the channels later.
    sine, cosine = np.asarray(state_dict[pos_embed], np.float64)[0, min(1, max_size - 1), [0, width // 4]]
    return {
        "channels": channels,
        "patch_size": patch_size,
        "depth": depth,
        "num_heads": width // head_dim,
        "head_dim": head_dim,
        "qk_norm": qk_norm,
        "dual_attention_layers": dual,
        "pos_embed_max_size": max_size,
        "pos_embed_base_size": max(1, round(max_size * np.arctan2(sine, cosine))),
    }


def _pos_embed(width: int, max_size: int, base_size: int) -> np.ndarray:
    return sincos_2d_centre_crop(max_size, max_size, width, max_size=max_size, base_size=base_size)[None]
