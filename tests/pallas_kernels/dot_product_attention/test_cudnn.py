"""The rules around cuDNN are right wherever cuDNN is: here JAX's plain form computes what cuDNN would be asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.derivatives import Fused, Rules
from pallas_kernels.dot_product_attention import cudnn, dense, problem, xla
from pallas_kernels.dot_product_attention.problem import Settings
from tests.pallas_kernels.dot_product_attention.problems import compiled


@pytest.fixture
def plain_form(monkeypatch):
    whole = jax.nn.dot_product_attention

    def without_cudnn(*arrays, implementation, **options):
        assert implementation == "cudnn"
        return whole(*arrays, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)


@pytest.mark.parametrize("shared", [None, "key"])
@pytest.mark.parametrize(
    "options, queries, keys",
    [
        ({}, 12, 12),
        ({}, 11, 12),
        ({}, 12, 7),
        ({"right": 0}, 12, 12),
        ({"right": 0}, 9, 9),
        ({"right": 0, "left": 5}, 12, 12),
    ],
    ids=str,
)
def test_value_tangent_and_gradient_are_those_of_the_definition(options, queries, keys, shared, plain_form):
    rng = np.random.default_rng(0)
    shapes = {"query": (2, queries, 4, 8), "key": (2, keys, 2, 8), "value": (2, keys, 2, 8)}
    if shared:
        shapes[shared] = (1, *shapes[shared][1:])
    operands, moved = ({n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()} for _ in range(2))
    setting = Settings(scale=0.3, **options)
    cotangents = tuple(
        jnp.asarray(x, jnp.float32) for x in (rng.normal(size=(2, queries, 4, 8)), np.zeros((2, queries, 4)))
    )

    @compiled
    def by_definition(operands, moved, cotangents):
        outputs, tangents = jax.jvp(lambda x: dense.attend(x, setting), (operands,), (moved,))
        return outputs, tangents, jax.vjp(lambda x: dense.attend(x, setting), operands)[1](cotangents)[0]

    @compiled
    def by_rules(operands, moved, cotangents):
        outputs = cudnn.forward(operands, setting)
        tangents = cudnn.tangent(moved, operands, outputs, setting)
        return outputs, tangents, cudnn.backward(cotangents, operands, outputs, ("query", "key"), setting)

    outputs, tangents, gradients = by_definition(operands, moved, cotangents)
    (out, _), moved_outputs, found = by_rules(operands, moved, cotangents)
    np.testing.assert_allclose(out, outputs[0], atol=1e-6)
    for a, b in zip(moved_outputs, tangents, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert set(found) == {"query", "key"}
    for name, x in found.items():
        np.testing.assert_allclose(x, gradients[name], atol=5e-6)


RULES = Rules(cudnn.forward, cudnn.tangent, cudnn.backward, cudnn.complete)
# Under a name that runs on a CPU; its second order is that of the real ones.
fused = Fused("cudnn_in_tests", {"plain": RULES}, second_order=xla.SECOND_ORDER, shapes=problem.shapes)
SECOND = {
    "jvp of grad": lambda loss, x, t: jax.jvp(jax.grad(loss), (x,), (t,))[1],
    "grad of jvp": lambda loss, x, t: jax.grad(lambda x: jax.jvp(loss, (x,), (t,))[1])(x),
    "grad of grad": lambda loss, x, t: jax.grad(lambda x: dot(jax.grad(loss)(x), t))(x),
    "grad of jvp of jvp": lambda loss, x, t: jax.grad(
        lambda x: jax.jvp(lambda x: jax.jvp(loss, (x,), (t,))[1], (x,), (t,))[1]
    )(x),
}


def dot(one, two):
    return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


@pytest.mark.parametrize("order", SECOND)
def test_second_and_third_derivatives_are_those_of_the_definition(order, plain_form):
    rng = np.random.default_rng(0)
    shapes = {"query": (2, 5, 2, 4), "key": (1, 5, 1, 4), "value": (2, 5, 1, 4)}
    setting = Settings(scale=0.3, right=0)
    x, t = ({n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()} for _ in range(2))

    @functools.partial(jax.jit, static_argnums=0)
    def derivative(attend, x, t):
        return SECOND[order](lambda x: jnp.sin(attend(x)[0]).sum(), x, t)

    found = derivative(lambda x: fused(x, setting, "plain"), x, t)
    expected = derivative(lambda x: dense.attend(x, setting), x, t)
    for name in x:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5, err_msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [512, 333])
@pytest.mark.parametrize("options", [{}, {"right": 0}], ids=str)
def test_cudnn_itself_is_as_good_as_its_rounding(options, length):
    rng = np.random.default_rng(0)
    operands = {n: jnp.asarray(rng.normal(size=(2, length, 4, 64)), jnp.bfloat16) for n in ("query", "key", "value")}
    setting = Settings(scale=0.125, **options)
    exact = {n: x.astype(jnp.float32) for n, x in operands.items()}
    want = jax.value_and_grad(lambda x: jnp.sin(dense.attend(x, setting)[0]).sum())(exact)
    attend = lambda x: cudnn.forward(x, setting)[0].astype(jnp.float32)  # noqa: E731
    cotangent = jnp.cos(attend(operands)).astype(jnp.bfloat16)
    found = cudnn.backward((cotangent, None), operands, None, tuple(operands), setting)
    np.testing.assert_allclose(jnp.sin(attend(operands)).sum(), want[0], rtol=2e-2)
    for name, x in found.items():
        np.testing.assert_allclose(x.astype(jnp.float32), want[1][name], atol=2e-2, err_msg=name)
