"""Laws of latents: truncation keeps the shape of the normal inside, and arcs stay on the sphere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, truncnorm

from genjax.adversarial.latents import slerp, truncated_normal
from genjax.errors import InputError

A, B = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
UNIT_A, UNIT_B = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (A, B))


@pytest.mark.parametrize("limit", [0.5, 2.0])
def test_truncated_latents_have_the_truncated_normal_distribution(limit):
    z = np.asarray(truncated_normal(jax.random.key(0), (4000,), limit))
    assert np.abs(z).max() <= limit
    assert kstest(z, truncnorm(-limit, limit).cdf).pvalue > 1e-3


def test_an_infinite_limit_is_the_plain_normal():
    z = np.asarray(truncated_normal(jax.random.key(0), (4000,), np.inf))
    assert kstest(z, "norm").pvalue > 1e-3


def test_a_limit_is_positive():
    with pytest.raises(InputError, match="above 0"):
        truncated_normal(jax.random.key(0), (2,), 0.0)


def test_an_arc_begins_at_a_and_ends_at_b():
    np.testing.assert_allclose(slerp(A, B, 0.0), A, atol=1e-6)
    np.testing.assert_allclose(slerp(A, B, jnp.ones(5)), B, atol=1e-6)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_an_arc_between_vectors_of_one_length_keeps_it_and_its_angle_grows_with_t(t):
    middle = slerp(3 * UNIT_A, 3 * UNIT_B, t)
    np.testing.assert_allclose(jnp.linalg.norm(middle, axis=-1), 3, rtol=1e-5)
    whole = np.arccos(np.sum(np.float64(UNIT_A) * np.float64(UNIT_B), axis=-1))
    part = np.arccos(np.sum(np.float64(UNIT_A) * np.float64(middle), axis=-1) / 3)
    np.testing.assert_allclose(part, t * whole, rtol=1e-5)


def test_an_arc_the_other_way_is_the_same_arc_backwards():
    t = jnp.linspace(0, 1, 5)
    np.testing.assert_allclose(slerp(A, B, t), slerp(B, A, 1 - t), atol=1e-5)


@pytest.mark.parametrize("other", [1.0, 2.0, -1.0, 1 + 1e-6])
def test_along_a_ray_an_arc_is_a_straight_line(other):
    np.testing.assert_allclose(slerp(A, other * A, 0.25), (0.75 + 0.25 * other) * A, atol=1e-6)
