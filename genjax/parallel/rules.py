"""Where every array of a state lies on a mesh: one table of rules from logical axis names to mesh axes.

Layers name the axes of their parameters (genjax/nn/linear.py); RULES say over which axis of the mesh each name is
divided (GSPMD, Xu et al. 2021, arXiv:2105.04663). The spec of a parameter follows from its names and its shape:

    1. A parameter of fewer than WHOLE_BELOW elements (of a stack: in each layer) is whole on every device: to gather
       it would cost more time than it takes memory.
    2. An axis whose name has a rule is divided over that mesh axis, if it divides evenly and no earlier rule took it.
    3. If `fsdp` is not taken by then, it divides the longest other axis that it can, but never the layers of a stack:
       every step of the scan would have to look for its layer on another device.
    4. What is left is whole.

Moments, averages and whatever else mirrors the parameters lies as they do (`mirrored`); counters and all else is whole.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from flax import linen as nn
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from genjax.parallel.mesh import BATCH_AXES, FSDP_AXIS, TENSOR_AXIS, batch_sharding, batch_shards, replicated

__all__ = [
    "RULES",
    "Axes",
    "by_rows",
    "bytes_per_device",
    "divided_over",
    "logical_axes",
    "mirrored",
    "spec",
    "state_shardings",
    "unbox",
]

Axes = tuple[str | None, ...]
Result = TypeVar("Result")

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH_AXES),
    ("vocab", TENSOR_AXIS),
    ("heads", TENSOR_AXIS),
    ("mlp", TENSOR_AXIS),
    ("embed", FSDP_AXIS),
    ("layers", None),
)
"""(logical name, mesh axis); of several names for one mesh axis in a parameter, the first one here gets it."""

WHOLE_BELOW = 2**10
"""Elements from which on a parameter is divided."""


def logical_axes(tree: PyTree[Any]) -> PyTree[Axes]:
    """The axis names of each parameter, from what a network's `init`, or `jax.eval_shape` of it, returns.

    A parameter without names has None for each of its axes. The leaves of the result are tuples of names.
    """
    return jax.tree.map(_names, tree, is_leaf=meta.is_axis_metadata)


def unbox(tree: PyTree[Any]) -> PyTree[Any]:
    """The parameters alone, as `apply`, optimisers and checkpoints take them."""
    return jax.tree.map(_value, tree, is_leaf=meta.is_axis_metadata)


def spec(
    mesh: Mapping[str, int], names: Axes, shape: tuple[int, ...], *, whole_below: int = WHOLE_BELOW
) -> PartitionSpec:
    """How an array whose axes have these names lies on a mesh of these sizes, `dict(data=2, fsdp=4, tensor=1)`.

    Raises ValueError for a name that has no rule.
    """
    rules = dict(RULES)
    unknown = sorted({name for name in names if name is not None} - rules.keys())
    if unknown:
        raise ValueError(f"an axis is named {unknown[0]!r}, and the names with a rule are {', '.join(rules)}")
    entries: list[Any] = [None] * len(shape)
    stacked = [name == "layers" for name in names]
    if math.prod(size for size, of_layers in zip(shape, stacked, strict=True) if not of_layers) < whole_below:
        return PartitionSpec()
    taken = set()
    for name, over in RULES:
        axes = (over,) if isinstance(over, str) else over or ()
        parts = math.prod(mesh.get(axis, 1) for axis in axes)
        for place in (i for i, n in enumerate(names) if n == name and parts > 1 and not taken & set(axes)):
            if shape[place] % parts == 0:
                entries[place] = over
                taken |= set(axes)
                break
    parts = mesh.get(FSDP_AXIS, 1)
    if parts > 1 and FSDP_AXIS not in taken:
        free = [i for i, entry in enumerate(entries) if entry is None and not stacked[i] and shape[i] % parts == 0]
        if free:
            entries[max(free, key=lambda i: shape[i])] = FSDP_AXIS
    return PartitionSpec(*entries)


def state_shardings(
    mesh: jax.sharding.Mesh, tree: PyTree[Any], *, whole_below: int = WHOLE_BELOW
) -> PyTree[NamedSharding]:
    """The sharding of each parameter of `tree`, which is what a network's `init`, or `jax.eval_shape` of it, returns.

    The result has the structure of `unbox(tree)`.
    """

    def of(leaf):
        names, shape = _names(leaf), np.shape(_value(leaf))
        return NamedSharding(mesh, spec(mesh.shape, names, shape, whole_below=whole_below))

    return jax.tree.map(of, tree, is_leaf=meta.is_axis_metadata)


def mirrored(tree: PyTree[Any], params: PyTree[Any], shardings: PyTree[NamedSharding]) -> PyTree[NamedSharding]:
    """The sharding of each leaf of any state: as the parameter it mirrors, or whole where it mirrors none.

    A leaf mirrors the parameter whose path ends its own path, if it has the same shape: so do an optimiser's moments,
    averages, and the parameters themselves inside of a larger state. Of several, the one of the longest path counts.
    `params` and `shardings` are of one structure, without boxes; of all leaves only paths and shapes are looked at.
    """
    leaves = jax.tree.leaves_with_path(params)
    known = {_keys(path): (np.shape(x), s) for (path, x), s in zip(leaves, jax.tree.leaves(shardings), strict=True)}
    whole = replicated(jax.tree.leaves(shardings)[0].mesh)

    def of(path, leaf):
        keys = _keys(path)
        for start in range(len(keys)):
            shape, sharding = known.get(keys[start:], (None, None))
            if shape == np.shape(leaf):
                return sharding
        return whole

    return jax.tree.map_with_path(of, tree)


def bytes_per_device(shardings: PyTree[NamedSharding], abstract: PyTree[Any]) -> int:
    """Bytes that each device holds of a tree of arrays, or of their shapes and dtypes; boxes are looked through."""

    def of(sharding, leaf):
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(of, shardings, unbox(abstract))))


@contextlib.contextmanager
def divided_over(mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Within, functions are traced as parts of a program that XLA divides over this mesh.

    Networks then run their kernels on each device's own samples and heads, and keep their tokens divided by samples
    (genjax/nn/island.py asks for this context). It may be entered inside of a function that is being jitted; gradients
    must be taken inside of it too. The program must have arguments, or outputs, that lie on the mesh.
    """
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
        yield


def by_rows(function: Callable[..., Result], tree: PyTree[Array], *rows: PyTree[Any]) -> Result:
    """function(tree, *rows) of a jitted function; where `tree` is divided over a mesh, each device computes its rows.

    Otherwise every device would compute all of them. Where they do not divide evenly, it still does.
    """
    shardings = [leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    meshes = [s.mesh for s in shardings if isinstance(s, NamedSharding) and not s.is_fully_replicated]
    if not meshes:
        return function(tree, *rows)
    mesh = meshes[0]
    if all(len(leaf) % batch_shards(mesh) == 0 for leaf in jax.tree.leaves(rows)):
        rows = jax.device_put(rows, batch_sharding(mesh))
    with divided_over(mesh):
        return function(tree, *rows)


def _names(leaf: Any) -> Axes:
    return leaf.names if meta.is_axis_metadata(leaf) else (None,) * np.ndim(leaf)


def _value(leaf: Any) -> Any:
    return leaf.value if meta.is_axis_metadata(leaf) else leaf


def _keys(path: tuple) -> tuple[str, ...]:
    """The path as names, whether they are keys of dicts, fields of tuples or places in lists."""
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)
