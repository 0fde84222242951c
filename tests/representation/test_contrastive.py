"""Laws of the contrastive objectives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from genjax.representation.contrastive import info_nce

B, D, TEMPERATURE = 6, 5, 0.3


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, D)).astype(np.float32), rng.normal(size=(B, D)).astype(np.float32)


def test_it_is_the_mean_of_the_cross_entropies_of_rows_and_columns(pair):
    image, text = (side.astype(np.float64) for side in pair)
    s = image @ text.T / TEMPERATURE
    by_hand = sum(np.mean(logsumexp(scores, axis=1) - np.diag(scores)) for scores in (s, s.T)) / 2
    np.testing.assert_allclose(info_nce(*pair, TEMPERATURE), by_hand, rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_where_all_similarities_are_equal_it_is_log_b(batch):
    same = jnp.ones((batch, D)) / math.sqrt(D)
    np.testing.assert_allclose(info_nce(same, same, 0.07), math.log(batch), rtol=1e-6, atol=1e-6)


def test_it_vanishes_as_the_temperature_does_where_pairs_are_nearest():
    image = jnp.eye(B)
    losses = [float(info_nce(image, image, temperature)) for temperature in (1.0, 0.3, 0.1, 0.01)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-6


def test_the_two_sides_may_change_places(pair):
    image, text = pair
    np.testing.assert_allclose(info_nce(image, text, TEMPERATURE), info_nce(text, image, TEMPERATURE), rtol=1e-6)


@pytest.mark.slow
def test_the_order_of_the_pairs_does_not_matter_and_the_gradient_follows_it(pair):
    order, groups = np.random.default_rng(1).permutation(B), np.array([0, 1, 1, 2, 3, 3])
    value_and_grad = jax.value_and_grad(info_nce, argnums=(0, 1))
    straight, moved = (
        value_and_grad(pair[0][rows], pair[1][rows], TEMPERATURE, groups[rows]) for rows in (np.arange(B), order)
    )
    np.testing.assert_allclose(moved[0], straight[0], rtol=1e-6)
    for mine, theirs in zip(moved[1], straight[1], strict=True):
        np.testing.assert_allclose(mine, theirs[order], rtol=0, atol=1e-6)


def test_its_gradient_is_that_by_hand(pair):
    """d/d image = (softmax over rows + softmax over columns - 2 identity) text / (2 B temperature)."""
    image, text = (side.astype(np.float64) for side in pair)
    s = image @ text.T / TEMPERATURE
    weights = (softmax(s, axis=1) + softmax(s, axis=0) - 2 * np.eye(B)) / (2 * B)
    gradient = jax.grad(info_nce, argnums=(0, 1, 2))(*pair, TEMPERATURE)
    np.testing.assert_allclose(gradient[0], weights @ text / TEMPERATURE, rtol=0, atol=2e-6)
    np.testing.assert_allclose(gradient[1], weights.T @ image / TEMPERATURE, rtol=0, atol=2e-6)
    np.testing.assert_allclose(gradient[2], -(weights * s).sum() / TEMPERATURE, rtol=1e-5)


def test_rows_of_a_group_are_no_negatives_of_each_other(pair):
    """Each row's loss is that of the batch without its duplicates."""
    image, text = (side.astype(np.float64) for side in pair)
    groups = np.array([0, 1, 1, 2, 1, 3])
    s, total = image @ text.T / TEMPERATURE, 0.0
    for row in range(B):
        others = [j for j in range(B) if groups[j] != groups[row] or j == row]
        total += logsumexp(s[row, others]) - s[row, row] + logsumexp(s[others, row]) - s[row, row]
    np.testing.assert_allclose(info_nce(*pair, TEMPERATURE, groups), total / (2 * B), rtol=1e-6)


def test_groups_of_one_are_no_groups_and_one_group_of_all_has_nothing_to_learn(pair):
    np.testing.assert_array_equal(info_nce(*pair, TEMPERATURE, np.arange(B)), info_nce(*pair, TEMPERATURE))
    loss, gradient = jax.value_and_grad(info_nce)(*pair, TEMPERATURE, np.zeros(B, int))
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_half_precision_features_have_a_float32_loss(pair):
    half = info_nce(*(side.astype(jnp.bfloat16) for side in pair), TEMPERATURE)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, info_nce(*pair, TEMPERATURE), rtol=0.05)
