"""Explicit sums over a mesh axis, for use inside `jax.shard_map`.

The ring (Patarasuk and Yuan 2009) sends each device's vector around in n pieces: after n - 1 steps of reduce-scatter
every device holds the total of one piece, after n - 1 more of all-gather all of them: 2 (n - 1) / n of the vector goes
over each link, which is the least possible.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Num, PyTree

__all__ = ["all_reduce", "ring_all_reduce"]


def all_reduce(tree: PyTree[Array], axis: str, algorithm: Literal["psum", "ring"] = "psum") -> PyTree[Array]:
    """The sum of `tree` over the devices of a mesh axis, on all of them; each leaf in its own type."""
    if algorithm == "psum":
        return jax.lax.psum(tree, axis)
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, tree))  # As psum does: a weight may be 1.0.
    sums = {}
    # One vector of each type: in float32, counts would be exact only up to 2^24.
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        vector, unravel = ravel_pytree({i: leaf for i, leaf in enumerate(leaves) if leaf.dtype == dtype})
        sums |= unravel(ring_all_reduce(vector, axis))
    return jax.tree.unflatten(structure, [sums[i] for i in range(len(leaves))])


def ring_all_reduce(vector: Num[Array, " D"], axis: str) -> Num[Array, " D"]:
    """`jax.lax.psum(vector, axis)` by `ppermute` between neighbours; every device ends with the same bits."""
    devices = jax.lax.axis_size(axis)
    if devices == 1:
        return vector
    length = vector.size
    pieces = jnp.pad(vector, (0, -length % devices)).reshape(devices, -1)
    own = jax.lax.axis_index(axis)
    to_next = [(i, (i + 1) % devices) for i in range(devices)]

    # Reduce-scatter: the piece that starts at device i collects a term at every stop, and ends whole at i - 1.
    travelling = pieces[own]
    for step in range(1, devices):
        travelling = jax.lax.ppermute(travelling, axis, to_next) + pieces[(own - step) % devices]

    # All-gather: the whole pieces go around once more.
    for step in range(devices):
        pieces = pieces.at[(own + 1 - step) % devices].set(travelling)
        travelling = jax.lax.ppermute(travelling, axis, to_next)
    return pieces.reshape(-1)[:length]
