"""Laws of the grid: ids and codes are one to one, all of them are reached, the rounding has the gradient of f."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.quantisation.finite_scalar import FSQ

PUBLISHED = {
    (8, 6, 5): 240,
    (8, 5, 5, 5): 1000,
    (7, 5, 5, 5, 5): 4375,
    (8, 8, 8, 6, 5): 15360,
    (8, 8, 8, 5, 5, 5): 64000,
}
TINY = FSQ(levels=(4, 3, 2))


@pytest.mark.parametrize("levels", PUBLISHED)
def test_recommended_levels_have_the_published_numbers_of_codes(levels):
    assert FSQ(levels).size == PUBLISHED[levels] and FSQ(levels).width == len(levels)


@pytest.mark.parametrize("quantiser", [TINY, FSQ((8, 6, 5)), FSQ((7, 5, 5, 5, 5))])
def test_ids_and_codes_are_one_to_one_and_every_code_is_reached(quantiser):
    ids = jnp.arange(quantiser.size)
    codes = quantiser.codes(ids, {}, {})
    assert len(np.unique(codes, axis=0)) == quantiser.size
    levels = np.asarray(quantiser.levels)
    half, offset = (levels - 1) * (1 + 1e-3) / 2, np.where(levels % 2 == 0, 0.5, 0.0)
    z = np.arctanh((np.float64(codes) * (levels // 2) + offset) / half) - np.arctanh(offset / half)  # f inverted
    said = quantiser(jnp.asarray(z, jnp.float32), {}, {})
    np.testing.assert_array_equal(said.ids, ids)
    np.testing.assert_array_equal(said.z_q, codes)


def test_no_vector_however_long_leaves_the_grid():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(999, 3)) * 50, jnp.float32)
    said = TINY(z, {}, {})
    assert said.ids.min() == 0 and said.ids.max() == TINY.size - 1
    np.testing.assert_array_equal(TINY.codes(said.ids, {}, {}), said.z_q)


def test_zero_is_a_code_and_f_has_the_values_of_its_formula():
    assert not np.any(TINY(jnp.zeros(3), {}, {}).z_q)
    np.testing.assert_allclose(TINY.bounded(jnp.zeros(3)), 0, atol=1e-6)
    limits = np.array([1.5015 - 0.5, 1.001, 0.5005 - 0.5])  # h - o, at h = (L - 1)(1 + 1e-3) / 2
    np.testing.assert_allclose(TINY.bounded(jnp.full(3, 50.0)), limits, atol=1e-6)


def test_the_gradient_is_that_of_the_squashing_before_the_rounding():
    z = jnp.array([0.3, -1.0, 0.7])
    rounded = jax.jacobian(lambda z: TINY(z, {}, {}).z_q)(z)
    smooth = jax.jacobian(lambda z: TINY.bounded(z) / np.array([2, 1, 1]))(z)
    np.testing.assert_allclose(rounded, smooth, rtol=1e-6)
    assert np.all(np.diag(rounded) > 0)


@pytest.mark.parametrize(
    ("levels", "told"), [((), "at least 2"), ((8, 1), "at least 2"), ((2001, 3), "at most 1000"), ((8,) * 12, "2\\^31")]
)
def test_levels_that_cannot_be_are_refused(levels, told):
    with pytest.raises(InputError, match=told):
        FSQ(levels)
