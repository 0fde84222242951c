"""On a GPU, the kernels err no more than the same computation without them, and give the same bits each time.

The measure is that of FlashAttention's own tests: against float32, the error may be twice (gradients: three times)
that of attention by its definition in the same 16-bit type.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.derivatives import Fused
from pallas_kernels.dot_product_attention import dense
from pallas_kernels.dot_product_attention.mask import tree
from pallas_kernels.dot_product_attention.problem import DIFFERENTIABLE, Settings, shapes
from pallas_kernels.triton.rules import RULES

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU"),
]
attention = Fused("attention", {"triton": RULES}, RULES, shapes)
ROWS = dict(batch=2, queries=300, keys=420, heads=8, kv_heads=2)


def ints(rng, low, high, *shape):
    return jnp.asarray(rng.integers(low, high, shape), jnp.int32)


FEATURES = {
    "plain": (lambda rng: {}, {}),
    "causal": (lambda rng: {}, dict(right=0)),
    "window": (lambda rng: {}, dict(left=70, right=5)),
    "soft cap": (lambda rng: {}, dict(soft_cap=2.0, right=0)),
    "bias": (lambda rng: dict(bias=jnp.asarray(rng.normal(size=(1, 8, 300, 420)), jnp.float32)), {}),
    "sinks": (lambda rng: dict(sinks=jnp.asarray(rng.normal(size=(1, 8)), jnp.float32)), {}),
    "lengths": (lambda rng: dict(key_end=jnp.broadcast_to(ints(rng, 0, 420, 2, 1), (2, 300))), {}),
    "segments": (
        lambda rng: dict(
            query_segments=jnp.sort(ints(rng, -1, 4, 2, 300)), key_segments=jnp.sort(ints(rng, -1, 4, 2, 420))
        ),
        {},
    ),
    "dense": (lambda rng: dict(dense=jnp.asarray(rng.random((2, 1, 300, 420)) < 0.5)), {}),
}


def problem(feature, width, dtype):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32).astype(dtype)  # noqa: E731
    b, t, s, n, k = ROWS.values()
    extra, changes = FEATURES[feature]
    operands = dict(query=normal(b, t, n, width), key=normal(b, s, k, width), value=normal(b, s, k, width))
    return operands | extra(rng), Settings(scale=width**-0.5, **changes), normal(b, t, n, width)


def results(attend, operands, cotangent):
    moving = {name: operands[name] for name in DIFFERENTIABLE if name in operands}
    moving = jax.tree.map(lambda x: x.astype(cotangent.dtype) if x.dtype != jnp.float32 else x, moving)

    @jax.jit
    def run(moving):
        out, pullback = jax.vjp(lambda m: attend(operands | m)[0], moving)
        dot = jax.jvp(lambda m: attend(operands | m)[0], (moving,), (jax.tree.map(jnp.cos, moving),))[1]
        return dict(out=out, tangent=dot) | pullback(cotangent)[0]

    return {name: np.asarray(x, np.float32) for name, x in run(moving).items()}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("width", [64, 80, 128, 256])
@pytest.mark.parametrize("feature", FEATURES)
def test_error_is_at_most_twice_that_of_the_definition_in_the_same_type(feature, width, dtype):
    operands, settings, cotangent = problem(feature, width, dtype)
    wide = {name: x.astype(jnp.float32) if x.dtype == dtype else x for name, x in operands.items()}
    with jax.default_matmul_precision("highest"):
        truth = results(lambda x: dense.attend(x, settings), wide, cotangent.astype(jnp.float32))
    naive = results(lambda x: dense.attend(x, settings), operands, cotangent)
    found = results(lambda x: attention(x, settings, "triton"), operands, cotangent)
    for name, want in truth.items():
        allowed = 2 if name == "out" else 3
        floor = 1e-3 * np.abs(want).max()
        assert np.abs(found[name] - want).max() <= allowed * np.abs(naive[name] - want).max() + floor, name


@pytest.mark.parametrize("queries", [1, 7])
def test_decoding_equals_the_definition(queries):
    rng = np.random.default_rng(1)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.bfloat16)  # noqa: E731
    drafts = tree(np.arange(queries) - 1, jnp.asarray([3000, 4000]))
    operands = (
        dict(query=normal(2, queries, 16, 128), key=normal(2, 4096, 4, 128), value=normal(2, 4096, 4, 128))
        | drafts.arrays()
    )
    settings = Settings(scale=128**-0.5)
    out, lse = attention(operands, settings, "triton")
    want, want_lse = dense.attend(operands, settings)
    np.testing.assert_allclose(np.asarray(out, np.float32), np.asarray(want, np.float32), atol=4e-3)
    np.testing.assert_allclose(lse, want_lse, atol=1e-3)


def test_gradients_are_the_same_bits_in_every_run():
    operands, settings, cotangent = problem("bias", 64, jnp.bfloat16)
    first = results(lambda x: attention(x, settings, "triton"), operands, cotangent)
    for _ in range(3):
        again = results(lambda x: attention(x, settings, "triton"), operands, cotangent)
        for name, x in first.items():
            np.testing.assert_array_equal(again[name], x)
