"""Laws of the grouped matmul: every row meets the matrix of its group, and no memory is spent on the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.neighbours import grouped_matmul as module
from pallas_kernels.neighbours.grouped_matmul import grouped_matmul


def group_of(sizes, rows):
    """The group of every row; len(sizes) for those after the last group."""
    return np.searchsorted(np.cumsum(sizes), np.arange(rows), side="right")


def definition(lhs, rhs, sizes):
    """By one matrix per row."""
    np_or_jnp = jnp if isinstance(lhs, jax.Array) else np
    matrices = np_or_jnp.concatenate([rhs, np_or_jnp.zeros_like(rhs[:1])])[group_of(sizes, lhs.shape[0])]
    return np_or_jnp.einsum("mk,mkn->mn", lhs, matrices)


@given(
    st.lists(st.sampled_from([0, 0, 1, 5, 16, 17, 40]), min_size=3, max_size=3).filter(lambda sizes: sum(sizes) <= 60),
    st.sampled_from(["float32", "bfloat16"]),
    st.integers(0, 99),
)
@settings(max_examples=20)
def test_equal_to_the_definition_in_float64(sizes, dtype, seed):
    rng = np.random.default_rng(seed)
    lhs, rhs = (jnp.asarray(rng.normal(size=s), dtype) for s in [(60, 8), (3, 8, 6)])
    ours = grouped_matmul(lhs, rhs, jnp.asarray(sizes))
    assert ours.dtype == dtype
    error = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
    expected = definition(*(np.asarray(x, np.float64) for x in (lhs, rhs)), sizes)
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=error, atol=10 * error)


def test_every_derivative(every_derivative):
    rng = np.random.default_rng(0)
    sizes = [3, 0, 17, 2]
    arrays = rng.normal(size=(25, 3)), rng.normal(size=(4, 3, 2))
    every_derivative(lambda *x: grouped_matmul(*x, jnp.asarray(sizes)), lambda *x: definition(*x, sizes), *arrays)


def test_vmap_is_stacking(vmap_is_stacking):
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(9, 3)), rng.normal(size=(2, 3, 2))
    vmap_is_stacking(lambda *x: grouped_matmul(*x, jnp.asarray([4, 3])), *arrays)


def test_vmap_over_the_sizes_too():
    rng = np.random.default_rng(0)
    lhs, rhs = jnp.asarray(rng.normal(size=(9, 3)), jnp.float32), jnp.asarray(rng.normal(size=(2, 3, 2)), jnp.float32)
    sizes = jnp.array([[4, 3], [0, 9]])
    found = jax.vmap(grouped_matmul, (None, None, 0))(lhs, rhs, sizes)
    np.testing.assert_array_equal(found, [grouped_matmul(lhs, rhs, s) for s in sizes])


@pytest.mark.parametrize("sizes", [[20, 0, 12, 5], [0, 0, 0, 0], [0, 40, 0, 0]])
def test_the_loops_of_the_cpu_equal_the_ragged_products_of_xla(sizes):
    rng = np.random.default_rng(0)
    lhs, rhs, other = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(40, 6), (4, 6, 5), (40, 5)])
    sizes = jnp.asarray(sizes, jnp.int32)
    looped = module._looped_product(lhs, rhs, sizes, False), module._looped_contraction(lhs, other, sizes)
    ragged = module._ragged_product(lhs, rhs, sizes), module._ragged_contraction(lhs, other, sizes)
    for one, two in zip(looped, ragged, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_groups():
    shape = jax.ShapeDtypeStruct

    def temporary(groups):
        def loss(lhs, rhs, sizes):
            return jnp.square(grouped_matmul(lhs, rhs, sizes)).sum()

        arrays = shape((512, 64), jnp.float32), shape((groups, 64, 32), jnp.float32), shape((groups,), jnp.int32)
        return jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) < 1.5 * temporary(4) < 64 * 512 * 32 * 4 / 8


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((jnp.ones((4, 3)), jnp.ones((2, 5, 6)), jnp.ones(2, int)), r"lhs has shape \(4, 3\), accepted is \(rows, 5\)"),
        (
            (jnp.ones((4, 3)), jnp.ones((2, 3, 6)), jnp.ones(3, int)),
            r"group_sizes has shape \(3,\), accepted is \(2,\)",
        ),
        ((jnp.ones((4, 3)), jnp.ones((2, 3, 6), jnp.bfloat16), jnp.ones(2, int)), "one dtype for both"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        grouped_matmul(*arguments)
