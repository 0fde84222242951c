"""Scaled dot-product attention by an implementation that the config names: the networks' door to the kernels.

Samples and heads do not see each other, so where XLA divides the program over a mesh, each device attends to its own
samples and heads, by any kernel, in an island (see island.py). The names of the two axes are all that is known here.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import pallas_kernels
from genjax.nn.island import on_own_part
from genjax.nn.linear import Axes

__all__ = ["AttentionImplementation", "attention"]

AttentionImplementation = Literal["auto", "xla", "cudnn", "triton", "mosaic"]
"""`auto`: the fastest proven one of this machine that does exactly what is asked; docs/kernels.md has the table."""


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    *,
    implementation: AttentionImplementation = "auto",
    **options,
) -> Float[Array, "B T N V"] | tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """softmax(q k^T / sqrt(H)) v; the options are those of `pallas_kernels.attention` (masks, bias, windows, ...).

    With `return_residual` also the log of each query's sum of exponentials.
    """
    options["implementation"] = None if implementation == "auto" else implementation
    if query.ndim != 4:  # A sample without an axis of samples: there is nothing that would be divided for sure.
        return pallas_kernels.attention(query, key, value, **options)
    arrays = {name: options.pop(name) for name in _ARRAYS if options.get(name) is not None}
    leaves, tree = jax.tree.flatten_with_path(arrays)

    def attend(query, key, value, *leaves):
        return pallas_kernels.attention(query, key, value, **tree.unflatten(leaves), **options)

    return on_own_part(
        attend,
        (query, key, value, *(x for _, x in leaves)),
        (_HEADS, _HEADS, _HEADS, *(_axes(path, x) for path, x in leaves)),
        (_HEADS, _HEADS[:3]) if options.get("return_residual") else _HEADS,
    )


_HEADS: Axes = ("batch", None, "heads", None)
_PAIRS: Axes = ("batch", "heads", None, None)
_ARRAYS = ("bias", "mask", "query_seq_lengths", "key_value_seq_lengths", "segment_ids", "positions", "sinks")


def _axes(path: tuple, x: Array) -> Axes:
    """The names of the axes of an option that is an array, or a part of a `Mask`."""
    name, rank = path[0].key, jnp.ndim(x)
    part = path[1].name if name == "mask" and len(path) > 1 else None  # of a Mask
    if name == "sinks":
        return ("heads",)
    if name == "bias" or (name == "mask" and part in (None, "dense")):
        return _PAIRS[4 - rank :]  # As in numpy, leading axes may be left out.
    shared = name in ("segment_ids", "positions") and rank == 1
    return (None,) if shared else ("batch", *[None] * (rank - 1))
