"""Islands: functions that each device runs on its own part of the arrays, in a program that XLA divides.

With parameters that are divided over a mesh, one program is written for all devices and XLA divides it: every operation
of plain JAX, but no kernel that it cannot look into. A kernel whose rows, or heads, do not see each other needs no
division either: in an island (`jax.shard_map`) each device runs it on the rows and heads that lie there already, and
the program around the island goes on as if the kernel had been divided.

A network knows no mesh, and this keeps it so. It names axes (batch, heads) as it does for parameters (see linear.py).
What they mean is asked of the context in which it is traced: Linen's rules (`nn.logical_axis_rules`) give the axes of
the mesh for a name, JAX's context (`jax.set_mesh`, `jax.sharding.use_abstract_mesh`) gives their sizes. Only axes that
XLA divides on its own (of type Auto) count. So nothing happens on one device, without rules, or inside an explicit
shard_map, where the axes are Manual and the arrays are parts already.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Shaped

from genjax.nn.linear import Axes

__all__ = ["lying_on", "on_own_part"]

Outputs = TypeVar("Outputs", Array, tuple[Array, ...])


def on_own_part(
    function: Callable[..., Outputs],
    arguments: Sequence[Shaped[Array, "..."]],
    axes: Sequence[Axes],
    out_axes: Axes | tuple[Axes, ...],
) -> Outputs:
    """function(*arguments), each device with its part of the axes that have names; exactly the same numbers.

    `axes` name the axes of each argument, `out_axes` those of the output, or of each of several outputs. Between the
    entries of a named axis the function may mix nothing. An axis of size 1 is one that all entries share: every device
    gets it whole. A name whose axes the mesh does not divide is divided over fewer axes of the mesh, or not at all.
    """
    places = _places(arguments, axes)
    if not places:
        return function(*arguments)

    def spec(names: Axes, shape: tuple[int, ...] | None = None) -> PartitionSpec:
        sizes = shape or (None,) * len(names)
        return PartitionSpec(*(places.get(n) if size != 1 else None for n, size in zip(names, sizes, strict=True)))

    one = not out_axes or not isinstance(out_axes[0], tuple)
    return jax.shard_map(
        function,
        in_specs=tuple(spec(names, x.shape) for names, x in zip(axes, arguments, strict=True)),
        out_specs=spec(out_axes) if one else tuple(map(spec, out_axes)),
        axis_names=set(_divided_by_xla()),
    )(*arguments)


def lying_on(x: Shaped[Array, "*shape"], axes: Axes) -> Shaped[Array, "*shape"]:
    """x, told to XLA to be divided along the axes that have names, where the mesh divides them: the same numbers.

    XLA finds out by itself how to divide a program, from where its inputs lie. This keeps it from dividing the width of
    the tokens where the parameters, and not the tokens, are to travel.
    """
    places = _places([x], [axes])
    if not places:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*map(places.get, axes)))


def _divided_by_xla() -> dict[str, int]:
    """Sizes of the mesh axes over which XLA divides the program that is being traced."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {axis: mesh.shape[axis] for axis, kind in kinds if kind == AxisType.Auto}


def _places(arguments: Sequence[Array], axes: Sequence[Axes]) -> dict[str, tuple[str, ...]]:
    """The mesh axes over which each name is divided; names that are not divided are left out."""
    mesh, rules = _divided_by_xla(), nn.get_logical_axis_rules()
    if not rules or all(size == 1 for size in mesh.values()):
        return {}
    sizes: dict[str, set[int]] = {}
    for names, x in zip(axes, arguments, strict=True):
        for name, size in zip(names, x.shape, strict=True):
            if name is not None:
                sizes.setdefault(name, set()).add(size)
    found = {}
    for name, of_axis in sizes.items():
        entry = nn.logical_to_mesh_axes((name,), rules)[0] or ()
        over = tuple(axis for axis in ([entry] if isinstance(entry, str) else entry) if mesh.get(axis, 1) > 1)
        many = of_axis - {1}
        while over and not (many and all(size % math.prod(map(mesh.get, over)) == 0 for size in many)):
            over = over[:-1]
        if over:
            found[name] = over
    return found
