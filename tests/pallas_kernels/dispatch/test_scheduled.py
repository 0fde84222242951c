"""A mask that carries its schedules gives what it gives without them, and no kernel computes them again."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Mask, attention, scheduled
from pallas_kernels.dispatch.implementations import TILINGS, fused
from pallas_kernels.dot_product_attention import schedule
from pallas_kernels.dot_product_attention.mask import prefix
from pallas_kernels.dot_product_attention.problem import Settings
from tests.pallas_kernels.dot_product_attention.problems import compiled

LENGTH = 1100
DOCUMENTS = jnp.repeat(jnp.arange(5), LENGTH // 5)[None]
PACKED = Mask(query_segments=DOCUMENTS, key_segments=DOCUMENTS, right=0)


def tokens(batch=1, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, LENGTH, 2, 8)), jnp.float32)


@pytest.mark.parametrize(
    "mask, batch", [(PACKED, 2), (prefix(jnp.array([30, 1000]), LENGTH), 2)], ids=["documents of all", "prefixes"]
)
def test_values_and_derivatives_are_the_same_bits(mask, batch):
    x = tokens(batch)
    planned = scheduled(mask, x, x, x)
    assert planned.schedules

    @compiled
    def everything(mask):
        attend = lambda x: attention(x, x, x, mask=mask)  # noqa: E731
        return jax.jvp(attend, (x,), (x,)), jax.vjp(attend, x)[1](x)

    jax.tree.map(np.testing.assert_array_equal, everything(planned), everything(mask))


def test_a_kernel_walks_the_schedule_that_the_mask_carries():
    x = tokens()
    nothing = jax.tree.map(jnp.zeros_like, scheduled(PACKED, x, x, x).schedules)
    out, lse = attention(x, x, x, mask=Mask(**PACKED.arrays(), right=0, schedules=nothing), return_residual=True)
    assert not np.asarray(out).any() and np.isneginf(lse).all()


def test_vmap_maps_the_schedules_along():
    ids = jnp.stack([DOCUMENTS, jnp.zeros_like(DOCUMENTS)])
    x = jnp.stack([tokens(), tokens(seed=1)])
    of = lambda ids, x: scheduled(Mask(query_segments=ids, key_segments=ids), x, x, x)  # noqa: E731
    run = jax.vmap(lambda ids, x: attention(x, x, x, mask=of(ids, x)))
    for ids_i, x_i, found in zip(ids, x, run(ids, x), strict=True):
        np.testing.assert_allclose(found, attention(x_i, x_i, x_i, segment_ids=ids_i), atol=1e-6)


def test_other_rules_and_other_shapes_leave_the_schedules_behind():
    x = tokens()
    planned = scheduled(Mask(query_segments=DOCUMENTS, key_segments=DOCUMENTS), x, x, x)
    assert (planned & Mask(right=0)).schedules is None
    np.testing.assert_array_equal(attention(x, x, x, mask=planned, is_causal=True), attention(x, x, x, mask=PACKED))
    fewer = x[:, :600]
    cut = Mask(query_segments=DOCUMENTS[:, :600], key_segments=DOCUMENTS, schedules=planned.schedules)
    expected = attention(fewer, x, x, segment_ids=(DOCUMENTS[:, :600], DOCUMENTS))
    np.testing.assert_array_equal(attention(fewer, x, x, mask=cut), expected)


def test_shapes_are_enough():
    x = tokens()
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    one, two = (scheduled(PACKED, *3 * [given]).schedules for given in (x, shape))
    assert one.keys() == two.keys()
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("queries", [2048, 4], ids=["training", "decoding"])
@pytest.mark.parametrize("implementation", ["triton", "mosaic"])
def test_every_kernel_finds_its_schedule(implementation, queries, monkeypatch):
    """Traced for a GPU: once the mask is planned, nothing but the plan is asked for."""
    if implementation == "triton" and importlib.util.find_spec("jax_triton") is None:
        pytest.skip("jax-triton is not installed")
    if implementation == "mosaic" and queries == 4:
        pytest.skip("Mosaic has no kernel of its own for decoding")
    shape = lambda length, heads: jax.ShapeDtypeStruct((1, length, heads, 64), jnp.bfloat16)  # noqa: E731
    operands = dict(query=shape(queries, 8), key=shape(2048, 2), value=shape(2048, 2))
    mask = Mask(key_end=jnp.full((1, queries), 70, jnp.int32))
    mask = scheduled(mask, *operands.values(), implementation=implementation)
    asked = set()
    monkeypatch.setattr(schedule, "_computed", lambda mask, queries, keys, tiling: asked.add(tiling))
    rules, settings = fused.implementations[implementation], Settings(scale=1.0)

    def everything(operands):
        outputs = rules.forward(operands, settings)
        rules.tangent(operands, operands, outputs, settings) if implementation == "triton" else None
        return rules.backward(outputs, operands, outputs, ("query", "key", "value"), settings)

    given = operands | mask.arrays() | mask.schedules
    jax.eval_shape(everything, {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in given.items()})
    assert not asked
    assert len(mask.schedules) == len(set().union(*(f(given, settings) for f in TILINGS[implementation])))
