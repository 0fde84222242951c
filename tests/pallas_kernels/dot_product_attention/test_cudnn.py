"""The rules around cuDNN are right wherever cuDNN is: here JAX's plain form computes what cuDNN would be asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dot_product_attention import cudnn, dense
from pallas_kernels.dot_product_attention.problem import Settings


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
    outputs, tangents = jax.jvp(lambda x: dense.attend(x, setting), (operands,), (moved,))
    cotangents = jnp.asarray(rng.normal(size=outputs[0].shape), jnp.float32), jnp.zeros_like(outputs[1])
    (gradients,) = jax.vjp(lambda x: dense.attend(x, setting), operands)[1](cotangents)

    out, _ = cudnn.forward(operands, setting)
    np.testing.assert_allclose(out, outputs[0], atol=1e-6)
    for a, b in zip(cudnn.tangent(moved, operands, outputs, setting), tangents, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    found = cudnn.backward(cotangents, operands, outputs, ("query", "key"), setting)
    assert set(found) == {"query", "key"}
    for name, x in found.items():
        np.testing.assert_allclose(x, gradients[name], atol=5e-6)


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
