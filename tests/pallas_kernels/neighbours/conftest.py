"""The laws that every operation here keeps, whatever it computes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""For programs that run once: most of the time of such a test is the compiler's."""


def _dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _random(rng, like):
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), like)


def _equal(ours, theirs, what):
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9, err_msg=what)


def _every_derivative(fused, plain, *arguments):
    """In float64, `fused`, a function of float arrays, has the value and the derivatives by autodiff of `plain`.

    First order is held to finite differences too, and to <J dx, dy> = <dx, J^T dy>.
    """
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        arguments = tuple(jnp.asarray(x, jnp.float64) for x in arguments)
        tangents = _random(rng, arguments)
        cotangents = _random(rng, jax.eval_shape(plain, *arguments))

        def every_order(f):
            def backward(*x):
                return jax.vjp(f, *x)[1](cotangents)

            def tangent(*x):
                return jax.jvp(f, x, tangents)[1]

            return lambda *x: {
                "value": f(*x),
                "tangent": tangent(*x),
                "backward": backward(*x),
                "grad of jvp": jax.vjp(tangent, *x)[1](cotangents),
                "jvp of grad": jax.jvp(backward, x, tangents)[1],
                "grad of grad": jax.vjp(backward, *x)[1](tangents),
            }

        found, expected = (compiled(every_order(f))(*arguments) for f in (fused, plain))
        for what in found:
            _equal(found[what], expected[what], what)
        np.testing.assert_allclose(_dot(found["tangent"], cotangents), _dot(tangents, found["backward"]), rtol=1e-10)
        ahead, behind = (fused(*(x + h * t for x, t in zip(arguments, tangents, strict=True))) for h in (1e-5, -1e-5))
        for moved, after, before in zip(*map(jax.tree.leaves, (found["tangent"], ahead, behind)), strict=True):
            np.testing.assert_allclose(moved, (after - before) / 2e-5, rtol=1e-5, atol=1e-6)


def _vmap_is_stacking(fused, *arguments, every_choice=True):
    """vmap over any choice of the arguments, and its gradient and tangent, equal stacked calls."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        stacked = tuple(jnp.stack([jnp.asarray(x, jnp.float64), _random(rng, x)]) for x in map(np.asarray, arguments))
        count = len(arguments)
        choices = itertools.product([True, False], repeat=count) if every_choice else [(True,) * count]

        def all_of(*x):
            out, pull = jax.vjp(fused, *x)
            return out, pull(jax.tree.map(jnp.cos, out)), jax.jvp(fused, x, x)[1]

        run = compiled(all_of)
        for mapped in choices:
            if any(mapped):
                given = tuple(x if m else x[0] for x, m in zip(stacked, mapped, strict=True))
                found = compiled(jax.vmap(all_of, [0 if m else None for m in mapped]))(*given)
                each = [run(*(x[i if m else 0] for x, m in zip(stacked, mapped, strict=True))) for i in range(2)]
                _equal(found, jax.tree.map(lambda *x: jnp.stack(x), *each), f"vmap over {mapped}")


@pytest.fixture
def every_derivative():
    return _every_derivative


@pytest.fixture
def vmap_is_stacking():
    return _vmap_is_stacking
