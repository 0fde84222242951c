r"""Every derivative of a fused function, from three pure functions of arrays.

A kernel computes outputs $y = f(x)$. Its tangent $\dot y = J(x)\,\dot x$ is linear in $\dot x$, and its backward pass
$\bar x = J(x)^\top \bar y$ is the transpose of that. With one JAX primitive for each of the three,

    forward(x) -> y          jvp:  y, tangent(dx | x, y)
    tangent(dx | x, y)       transpose:  backward
    backward(dy | x, y)      transpose:  tangent

JAX composes all the rest: grad, jvp, vmap, remat, and grad of a jvp with its target stopped, each with exactly these
three kernels. `jax.custom_vjp` cannot do that: it refuses forward mode. Derivatives of the tangent and the backward
pass with respect to x and y (second order) are those of a form in plain JAX, by autodiff.

Conventions: operands are a flat dict of arrays; the first axis of each is the batch, of size B or 1 (shared by the
whole batch); the first axis of every output is B. So vmap folds its axis into the batch.
"""

import functools
import importlib
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Arrays = dict[str, jax.Array]
_SECOND_ORDER = "second_order"
ONLY_ON = dict.fromkeys(("cudnn", "triton", "mosaic"), frozenset({"cuda"}))
"""Platforms of the implementations that do not run on all of them."""
WHOLE = frozenset({"triton", "mosaic"})
"""Kernels that XLA cannot look into: it would gather their operands on every device."""
UNTRIED = frozenset({"triton", "mosaic"})
"""Interpreted or specified on a CPU and compiled for an H100, but never yet run on a GPU: taken only when named.

Once they have run, what is taken without a name in a program that XLA divides (see WHOLE) is to be decided too.
"""


@dataclass(frozen=True)
class Rules:
    """One implementation of a fused function: its value, its tangent and its backward pass."""

    forward: Callable[[Arrays, Hashable], tuple[jax.Array, ...]]
    """forward(operands, settings) -> outputs."""
    tangent: Callable[[Arrays, Arrays, Sequence[jax.Array], Hashable], tuple[jax.Array, ...]]
    """tangent(tangents, operands, outputs, settings) -> tangents of the outputs; `tangents` holds those that move."""
    backward: Callable[[Sequence[jax.Array], Arrays, Sequence[jax.Array], tuple[str, ...], Hashable], Arrays]
    """backward(cotangents, operands, outputs, wanted, settings) -> cotangents of the operands named in `wanted`."""
    complete: Callable[[Arrays, Hashable], tuple[jax.Array, ...]] | None = None
    """complete(operands, settings) -> true outputs, in plain JAX, where `forward` has stand-ins for all but the first.

    Its own `tangent` and `backward` read no output, and `backward` no cotangent but the first. Second derivatives
    do, and so ask for the true outputs.
    """

    @classmethod
    def of_modules(cls, forward: str, tangent: str, backward: str, complete: str | None = None) -> "Rules":
        """The functions of these names in modules of these names, each imported when it is first called."""
        named = {"forward": forward, "tangent": tangent, "backward": backward, "complete": complete}
        return cls(**{name: imported_late(module, name) for name, module in named.items() if module is not None})


class Fused:
    """A fused function with several implementations and every derivative: `fused(operands, settings, implementation)`.

    `shapes(operands, settings)` gives the shapes and dtypes of the outputs. The rules `second_order` are plain JAX that
    autodiff can go through in both modes. The tangent of an output, and the cotangent of an operand, have the dtype of
    their primal. `saved` is the name of the outputs for policies of `jax.checkpoint`: to save them spares a kernel.
    """

    def __init__(self, name: str, implementations: Mapping[str, Rules], second_order: Rules, shapes: Callable):
        self.implementations = {**implementations, _SECOND_ORDER: second_order}
        self.shapes = shapes
        self.saved = f"{name}_outputs"
        self._forward = _primitive(f"{name}_forward", self._run_forward, self._shape_forward)
        self._tangent = _primitive(f"{name}_tangent", self._run_tangent, self._shape_tangent)
        self._backward = _primitive(f"{name}_backward", self._run_backward, self._shape_backward)
        ad.primitive_jvps[self._forward] = self._jvp_forward
        ad.primitive_jvps[self._tangent] = self._jvp_tangent
        ad.primitive_jvps[self._backward] = self._jvp_backward
        ad.primitive_transposes[self._tangent] = self._transpose_tangent
        ad.primitive_transposes[self._backward] = self._transpose_backward
        batching.primitive_batchers[self._forward] = self._batch_forward
        batching.primitive_batchers[self._tangent] = self._batch_tangent
        batching.primitive_batchers[self._backward] = self._batch_backward

    def __call__(self, operands: Arrays, settings: Hashable, implementation: str = "xla") -> tuple[jax.Array, ...]:
        names = tuple(sorted(operands))
        values = [jnp.asarray(operands[name]) for name in names]
        bind = functools.partial(_bind, self._forward, names=names, settings=settings, implementation=implementation)
        axes = _batch_axes(dict(zip(names, values, strict=True)))
        return tuple(_on_shards(bind, values, axes) if axes else bind(values))

    # What each primitive computes. The flat arguments are, in this order:
    #   forward: operands;   tangent: moving tangents, operands, outputs;   backward: cotangents, operands, outputs.

    def _run_forward(self, *values, names, settings, implementation):
        rules = self.implementations[implementation]
        return tuple(rules.forward(dict(zip(names, values, strict=True)), settings))

    def _run_tangent(self, *values, moving, names, settings, implementation):
        tangents, operands, outputs = _split(values, len(moving), len(names))
        rules = self.implementations[implementation]
        operands = dict(zip(names, operands, strict=True))
        return tuple(rules.tangent(dict(zip(moving, tangents, strict=True)), operands, outputs, settings))

    def _run_backward(self, *values, wanted, names, settings, implementation):
        count = (len(values) - len(names)) // 2
        cotangents, operands, outputs = _split(values, count, len(names))
        rules = self.implementations[implementation]
        operands = dict(zip(names, operands, strict=True))
        found = rules.backward(cotangents, operands, outputs, wanted, settings)
        return tuple(found[name] for name in wanted)

    def _shape_forward(self, *values, names, settings, implementation):
        return self.shapes(dict(zip(names, values, strict=True)), settings)

    def _shape_tangent(self, *values, moving, names, settings, implementation):
        return _split(values, len(moving), len(names))[2]

    def _shape_backward(self, *values, wanted, names, settings, implementation):
        operands = _split(values, (len(values) - len(names)) // 2, len(names))[1]
        return [operands[names.index(name)] for name in wanted]

    # Derivatives.

    def _jvp_forward(self, values, tangents, *, names, **params):
        outputs = _bind(self._forward, values, names=names, **params)
        outputs = [checkpoint_name(x, self.saved) for x in outputs]  # so that a remat policy can keep them
        moving = tuple(name for name, x in zip(names, tangents, strict=True) if _moves(x))
        moved = [x for x in tangents if _moves(x)]
        found = _bind(self._tangent, [*moved, *values, *outputs], moving=moving, names=names, **params)
        return outputs, found

    def _jvp_tangent(self, values, tangents, *, moving, **params):
        # Linear in the tangents it is given: for those the primitive itself, so that it can be transposed.
        count = len(moving)
        found = _bind(self._tangent, values, moving=moving, **params)
        moved = [i for i in range(count) if _moves(tangents[i])]
        parts = []
        if moved:
            linear = [*(tangents[i] for i in moved), *values[count:]]
            parts.append(_bind(self._tangent, linear, moving=tuple(moving[i] for i in moved), **params))
        run = functools.partial(self._run_tangent, moving=moving, **params | {"implementation": _SECOND_ORDER})
        parts.extend(_second_order(run, self._completed(values, count, **params), tangents, count))
        return found, _total(parts, found)

    def _jvp_backward(self, values, tangents, *, names, **params):
        count = (len(values) - len(names)) // 2
        found = _bind(self._backward, values, names=names, **params)
        parts = []
        if any(map(_moves, tangents[:count])):
            parts.append(self._linear_backward(tangents[:count], values[count:], names=names, **params))
        run = functools.partial(self._run_backward, names=names, **params | {"implementation": _SECOND_ORDER})
        parts.extend(_second_order(run, self._completed(values, count, names=names, **params), tangents, count))
        return found, _total(parts, found)

    def _transpose_tangent(self, cotangents, *values, moving, names, **params):
        tangents, operands, outputs = _split(values, len(moving), len(names))
        wanted = tuple(name for name, x in zip(moving, tangents, strict=True) if ad.is_undefined_primal(x))
        found = self._linear_backward(cotangents, [*operands, *outputs], wanted=wanted, names=names, **params)
        found = dict(zip(wanted, found, strict=True))
        return [found.get(name) for name in moving] + [None] * (len(values) - len(moving))

    def _transpose_backward(self, cotangents, *values, wanted, names, **params):
        count = (len(values) - len(names)) // 2
        moving = tuple(name for name, x in zip(wanted, cotangents, strict=True) if _moves(x))
        moved = [x for x in cotangents if _moves(x)]
        found = _bind(self._tangent, [*moved, *values[count:]], moving=moving, names=names, **params)
        found = [x if ad.is_undefined_primal(value) else None for x, value in zip(found, values, strict=False)]
        return found + [None] * (len(values) - count)

    def _linear_backward(self, cotangents, rest, *, implementation, **params):
        """The backward pass; in plain JAX where an implementation does not read all of these cotangents."""
        if self.implementations[implementation].complete and any(map(_moves, cotangents[1:])):
            rest = self._completed(rest, 0, implementation=implementation, **params)
            implementation = _SECOND_ORDER
        values = [*map(ad.instantiate_zeros, cotangents), *rest]
        return _bind(self._backward, values, implementation=implementation, **params)

    def _completed(self, values, start, *, names, settings, implementation, **_):
        """`values`, whose operands begin at `start`, with true outputs in the place of stand-ins."""
        complete = self.implementations[implementation].complete
        if complete is None:
            return values
        before, operands, _ = _split(values, start, len(names))
        return [*before, *operands, *complete(dict(zip(names, operands, strict=True)), settings)]

    # vmap: its axis joins the batch axis.

    def _batch_forward(self, values, axes, **params):
        size, values = _folded(values, axes)
        return _unfolded(size, _bind(self._forward, values, **params))

    def _batch_tangent(self, values, axes, *, moving, names, **params):
        # A shared operand may have a tangent of its own for each example.
        values, axes = list(values), list(axes)
        size = _axis_size(values, axes)
        for i, name in enumerate(moving):
            j = len(moving) + names.index(name)
            if (axes[i] is None) != (axes[j] is None):
                for k in (i, j):
                    values[k], axes[k] = _spread(size, values[k], axes[k]), 0
        _, values = _folded(values, axes)
        return _unfolded(size, _bind(self._tangent, values, moving=moving, names=names, **params))

    def _batch_backward(self, values, axes, *, wanted, names, **params):
        # The cotangent of an operand of batch size 1 sums over the batch, but not over the axis of vmap.
        values, axes = list(values), list(axes)
        size = _axis_size(values, axes)
        count = (len(values) - len(names)) // 2
        batch = max(x.shape[0 if axis is None or axis > 0 else 1] for x, axis in zip(values, axes, strict=True))
        shared = []
        for name in wanted:
            i = count + names.index(name)
            x = _spread(size, values[i], axes[i])
            if x.shape[1] < batch:
                shared.append(name)
                x = jnp.broadcast_to(x, (size, batch, *x.shape[2:]))
            values[i], axes[i] = x, 0
        _, values = _folded(values, axes)
        found, axes = _unfolded(size, _bind(self._backward, values, wanted=wanted, names=names, **params))
        found = [x.sum(1, keepdims=True) if name in shared else x for name, x in zip(wanted, found, strict=True)]
        return found, axes


def imported_late(module: str, name: str) -> Callable:
    """The function `name` of a module that is imported at its first call, for its libraries are optional.

    The call raises NotImplementedError, with what to install, where one of them is missing.
    """

    def call(*arguments, **options):
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise NotImplementedError(
                f"{module} needs {error.name}, which is not installed: pip install 'genjax[cuda]'"
            ) from error
        return getattr(found, name)(*arguments, **options)

    return call


def _primitive(name: str, run: Callable, shapes: Callable) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.cache
    def compiled(params):
        return jax.jit(functools.partial(primitive.bind, **dict(params)))

    @primitive.def_impl
    def _(*values, **params):
        return compiled(tuple(sorted(params.items())))(*values)

    @primitive.def_abstract_eval
    def _(*values, **params):
        return [_placed(x, like=values[0]) for x in shapes(*values, **params)]

    lower = mlir.lower_fun(run, multiple_results=True)

    def lowering(context, *values, implementation, **params):
        platforms = set(context.module_context.platforms)
        interpreted = implementation == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        if implementation in ONLY_ON and not platforms <= ONLY_ON[implementation] and not interpreted:
            runs, here = "/".join(sorted(ONLY_ON[implementation])), "/".join(sorted(platforms))
            raise NotImplementedError(
                f"implementation {implementation!r} of {name} runs on {runs}, and this program is compiled for {here}:"
                " 'xla' runs everywhere"
            )
        devices = getattr(context.module_context.axis_context, "num_devices", None) or 1  # not asked inside shard_map
        if implementation in WHOLE and devices > 1:
            raise NotImplementedError(
                f"implementation {implementation!r} of {name} cannot be divided by XLA, and this program is for"
                f" {devices} devices: call it inside jax.shard_map or on an explicit mesh, or take 'xla'"
            )
        # Inside shard_map the arrays vary over mesh axes; the rules need not know.
        plain = [jax.core.ShapedArray(x.shape, x.dtype) for x in context.avals_in]
        return lower(context.replace(avals_in=plain), *values, implementation=implementation, **params)

    mlir.register_lowering(primitive, lowering)
    return primitive


def _placed(x, like) -> jax.core.ShapedArray:
    """An array that varies over the mesh axes of shard_map as `like` does."""
    replicated = jax.sharding.NamedSharding(like.sharding.mesh, jax.sharding.PartitionSpec(*[None] * len(x.shape)))
    return jax.core.ShapedArray(x.shape, x.dtype, sharding=replicated, manual_axis_type=like.manual_axis_type)


def _bind(primitive: Primitive, values: Sequence, **params) -> list[jax.Array]:
    """Bind, with every array varying over the mesh axes of shard_map that any of them varies over."""
    varies = [jax.typeof(x).manual_axis_type.varying for x in values]
    missing = [tuple(frozenset().union(*varies) - axes) for axes in varies]
    values = [jax.lax.pcast(x, axes, to="varying") if axes else x for x, axes in zip(values, missing, strict=True)]
    return primitive.bind(*values, **params)


def _batch_axes(operands: Arrays) -> tuple[str, ...]:
    """The axes of an explicit mesh that the batch is divided over. Raises ValueError where any other axis is."""
    found = set()
    for name, x in operands.items():
        first, *rest = jax.typeof(x).sharding.spec or [None]
        if any(axis is not None for axis in rest):
            raise ValueError(
                f"{name} {x.shape} is divided over the mesh as {jax.typeof(x).sharding.spec}: accepted is a divided"
                " batch axis; other divisions are for a call inside jax.shard_map"
            )
        if first is not None:
            found.add((first,) if isinstance(first, str) else tuple(first))
    if len(found) > 1:
        raise ValueError(
            f"the batch axis is divided over {' and over '.join(map(str, sorted(found)))}: accepted is one"
        )
    return found.pop() if found else ()


def _on_shards(bind: Callable, values: Sequence[jax.Array], axes: tuple[str, ...]) -> Sequence[jax.Array]:
    """Each device has its own part of the batch; what the batch shares, it shares with all of them."""
    divided = jax.sharding.PartitionSpec(axes)
    specs = [divided if x.shape[0] > 1 else jax.sharding.PartitionSpec() for x in values]
    values = [jax.sharding.reshard(x, spec) for x, spec in zip(values, specs, strict=True)]
    run = jax.shard_map(
        lambda *values: tuple(bind(values)), in_specs=tuple(specs), out_specs=divided, axis_names=set(axes)
    )
    return run(*values)


def _split(values: Sequence, *sizes: int) -> list[list]:
    parts, start = [], 0
    for size in sizes:
        parts.append(list(values[start : start + size]))
        start += size
    return [*parts, list(values[start:])]


def _moves(tangent) -> bool:
    """False for the tangents of integers and of what does not depend on the variable."""
    return not isinstance(tangent, ad.Zero) and tangent.dtype != jax.dtypes.float0


def _second_order(run: Callable, values: Sequence, tangents: Sequence, linear: int) -> list[list[jax.Array]]:
    """The derivative of `run` along the arguments after the first `linear`, if any of them moves."""
    moved = [i for i in range(linear, len(values)) if _moves(tangents[i])]
    if not moved:
        return []

    def partly(*parts):
        given = list(values)
        for i, x in zip(moved, parts, strict=True):
            given[i] = x
        return list(run(*given))

    return [jax.jvp(partly, [values[i] for i in moved], [tangents[i] for i in moved])[1]]


def _total(parts: Sequence[Sequence[jax.Array]], like: Sequence[jax.Array]) -> list:
    if not parts:
        return [ad.Zero.from_primal_value(x) for x in like]
    return [functools.reduce(jnp.add, terms) for terms in zip(*parts, strict=True)]


def _axis_size(values: Sequence, axes: Sequence) -> int:
    return next(x.shape[axis] for x, axis in zip(values, axes, strict=True) if axis is not None)


def _spread(size: int, x, axis):
    """x with the axis of vmap in front, repeated along it where x is not mapped."""
    if axis is None:
        return jnp.broadcast_to(x, (size, *x.shape))
    return jnp.moveaxis(x, axis, 0)


def _folded(values: Sequence, axes: Sequence) -> tuple[int, list]:
    """The arrays with the axis of vmap folded into the batch; what is shared by all stays of size 1."""
    size = _axis_size(values, axes)
    shape = [
        x.shape if axis is None else _spread(size, x, axis).shape[1:] for x, axis in zip(values, axes, strict=True)
    ]
    batch = max(s[0] for s in shape)
    folded = []
    for x, axis in zip(values, axes, strict=True):
        if axis is None and x.shape[0] == 1:
            folded.append(x)
            continue
        x = _spread(size, x, axis)
        x = jnp.broadcast_to(x, (size, batch, *x.shape[2:]))
        folded.append(x.reshape(size * batch, *x.shape[2:]))
    return size, folded


def _unfolded(size: int, found: Sequence) -> tuple[list, list[int]]:
    return [x.reshape(size, x.shape[0] // size, *x.shape[1:]) for x in found], [0] * len(found)
