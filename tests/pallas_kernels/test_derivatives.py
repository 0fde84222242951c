"""Laws of `Fused`, on a function of which everything is known: y = sin(x) w, z = sum of y over the last axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.derivatives import Fused, Rules


def forward(operands, power):
    y = jnp.sin(operands["x"]) * operands["w"] ** power
    return y, y.sum(-1)


def tangent(tangents, operands, outputs, power):
    x, w = operands["x"], operands["w"]
    total = jnp.zeros_like(outputs[0])
    if "x" in tangents:
        total += jnp.cos(x) * w**power * tangents["x"]
    if "w" in tangents:
        total += power * outputs[0] / w * tangents["w"]
    return total, total.sum(-1)


def backward(cotangents, operands, outputs, wanted, power):
    x, w = operands["x"], operands["w"]
    total = cotangents[0] + cotangents[1][..., None]
    found = {"x": total * jnp.cos(x) * w**power, "w": total * power * outputs[0] / w}
    return {n: f.sum(0, keepdims=True) if operands[n].shape[0] < len(f) else f for n, f in found.items() if n in wanted}


def shapes(operands, power):
    x = operands["x"]
    batch = max(x.shape[0], operands["w"].shape[0])
    return jax.ShapeDtypeStruct((batch, x.shape[1]), x.dtype), jax.ShapeDtypeStruct((batch,), x.dtype)


RULES = Rules(forward, tangent, backward)
fused = Fused("toy", {"xla": RULES}, second_order=RULES, shapes=shapes)


def ours(x, w):
    return fused({"x": x, "w": w, "unused": jnp.zeros((1, 3), jnp.int32)}, 3)


def plain(x, w):
    return forward({"x": x, "w": w}, 3)


X, W = np.random.default_rng(0).normal(size=(4, 5)), np.random.default_rng(1).normal(size=(1, 5)) + 2


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def scalar(f):
    return lambda x, w: sum(jnp.sin(y).sum() for y in f(x, w))


WAYS = {
    "value": lambda f: f,
    "jvp": lambda f: lambda x, w: jax.jvp(f, (x, w), (w * x, w))[1],
    "jvp of x alone": lambda f: lambda x, w: jax.jvp(lambda x: f(x, w), (x,), (x,))[1],
    "grad": lambda f: jax.grad(scalar(f), argnums=(0, 1)),
    "grad of one output": lambda f: jax.grad(lambda x, w: f(x, w)[1].sum(), argnums=1),
    "hessian": lambda f: jax.hessian(scalar(f), argnums=(0, 1)),
    "grad of jvp": lambda f: jax.grad(lambda x, w: jax.jvp(scalar(f), (x, w), (x, w))[1], argnums=(0, 1)),
    "jacfwd": lambda f: jax.jacfwd(f, argnums=1),
    "jacrev": lambda f: jax.jacrev(f, argnums=(0, 1)),
    "linear transpose of the tangent": lambda f: (
        lambda x, w: jax.linear_transpose(lambda t: jax.jvp(lambda x: f(x, w), (x,), (t,))[1], x)(f(x, w))
    ),
    "transpose of the transpose": lambda f: (
        lambda x, w: (
            jax.jvp(lambda c: jax.vjp(f, x, w)[1](c), (f(x, w),), (f(w, x),))[1] if x.shape == w.shape else f(x, w)
        )
    ),
    "remat": lambda f: jax.grad(jax.checkpoint(scalar(f)), argnums=(0, 1)),
    "scan": lambda f: jax.grad(lambda x, w: jax.lax.scan(lambda c, _: (f(c, w)[0], None), x, None, length=2)[0].sum()),
}


def close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def expected(way):
    return compiled(WAYS[way](plain))(X, W)


@pytest.mark.parametrize("compile", [compiled, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("way", WAYS)
def test_every_derivative_is_that_of_plain_autodiff(way, compile):
    close(compile(WAYS[way](ours))(X, W), expected(way))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, None), (None, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("way", ["value", "jvp", "jvp of x alone", "grad", "grad of jvp", "transpose of the transpose"])
@pytest.mark.parametrize("batch", [1, 4])
def test_vmap_is_a_loop(way, axes, batch):
    given = [x if a is None else jnp.stack([x, x + 1, 2 * x], a) for x, a in zip((X[:batch], W), axes, strict=True)]
    found, plainly = (compiled(jax.vmap(WAYS[way](f), in_axes=axes))(*given) for f in (ours, plain))
    close(found, plainly)


def test_only_what_moves_reaches_the_tangent_and_only_what_is_wanted_the_backward_pass():
    forward_mode = str(jax.make_jaxpr(lambda t: jax.jvp(lambda x: ours(x, W), (X,), (t,))[1])(X))
    assert "moving=('x',)" in forward_mode
    reverse_mode = str(jax.make_jaxpr(jax.grad(lambda w: ours(X, w)[0].sum()))(W))
    assert "wanted=('w',)" in reverse_mode


def test_integers_have_no_derivative_and_do_not_hinder():
    gradient = jax.grad(lambda x, i: fused({"x": x, "w": W, "i": i}, 3)[0].sum())
    close(gradient(X, jnp.zeros((1, 2), jnp.int32)), jax.grad(lambda x: plain(x, W)[0].sum())(X))
