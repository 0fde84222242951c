"""Laws of the Fréchet distance."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from genjax.errors import InputError
from genjax.metrics.frechet import Gaussian, frechet_distance, gaussian_frechet_distance, gaussian_statistics


def samples(seed: int, n: int = 40, width: int = 6) -> np.ndarray:
    """Rows of a Gaussian with a mean and a full covariance of its own."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def test_statistics_are_the_mean_and_the_unbiased_covariance_in_float64():
    features = samples(0).astype(np.float32)
    statistics = gaussian_statistics(features)
    np.testing.assert_allclose(statistics.mean, np.mean(features, axis=0, dtype=np.float64), rtol=1e-14)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12)
    assert statistics.mean.dtype == statistics.covariance.dtype == np.float64


def test_a_set_is_at_distance_zero_from_itself_in_any_order():
    assert frechet_distance(samples(0), samples(0)) < 1e-12
    assert frechet_distance(samples(0), samples(0)[::-1]) < 1e-12


@given(st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_distance_is_symmetric_and_not_negative(i, j):
    distance = frechet_distance(samples(i), samples(j, n=30))
    assert distance >= 0
    np.testing.assert_allclose(distance, frechet_distance(samples(j, n=30), samples(i)), rtol=1e-10)


def test_a_common_rotation_and_translation_changes_nothing():
    a, b = samples(1), samples(2)
    rotation = scipy.stats.ortho_group.rvs(a.shape[1], random_state=0)
    moved = [x @ rotation + 7 for x in (a, b)]
    np.testing.assert_allclose(frechet_distance(*moved), frechet_distance(a, b), rtol=1e-10)


def test_scaling_both_sets_scales_the_distance_by_the_square():
    a, b = samples(1), samples(2)
    np.testing.assert_allclose(frechet_distance(3 * a, 3 * b), 9 * frechet_distance(a, b), rtol=1e-10)


def test_translating_one_set_costs_the_squared_length_of_the_step():
    step = np.arange(6.0)
    np.testing.assert_allclose(frechet_distance(samples(0), samples(0) + step), np.sum(step**2), rtol=1e-12)


def test_diagonal_gaussians_have_the_closed_form():
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 5)), rng.uniform(0, 2, size=(2, 5))
    gaussians = [Gaussian(m, np.diag(s**2)) for m, s in zip(means, deviations, strict=True)]
    closed_form = np.sum((means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2)
    np.testing.assert_allclose(gaussian_frechet_distance(*gaussians), closed_form, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_form_with_the_root_of_the_product_of_covariances(seed):
    a, b = samples(seed), samples(seed + 10, n=50)
    s_a, s_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s_a @ s_b).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s_a + s_b - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-8)


def test_singular_covariances_lose_no_precision():
    # 5 samples of 64 features: rank 4. Embedded by an isometry, the distance is that of the small space.
    rng = np.random.default_rng(0)
    a, b = samples(0, n=40, width=4), samples(1, n=40, width=4)
    isometry = np.linalg.qr(rng.normal(size=(64, 64)))[0][:4]
    np.testing.assert_allclose(frechet_distance(a @ isometry, b @ isometry), frechet_distance(a, b), rtol=1e-12)
    assert frechet_distance(samples(2, n=5, width=64), samples(2, n=5, width=64)) < 1e-10


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "at least 2 samples, and there are 1"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "different widths, 3 and 2"),
        (np.zeros((4, 3)), np.zeros((4, 3, 1)), r"not an array of shape \(4, 3, 1\)"),
        (np.full((4, 3), [1, 2, np.nan]), np.zeros((4, 3)), "4 of 4 samples are not finite"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(unchecked, a, b, sentence):
    with pytest.raises(InputError, match=sentence):
        frechet_distance(a, b)
