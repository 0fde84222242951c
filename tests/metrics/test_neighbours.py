"""Laws of nearest-neighbour distances."""

import numpy as np
import pytest
import scipy.spatial.distance

from genjax.errors import InputError
from genjax.metrics import neighbours
from genjax.metrics.neighbours import nearest_distances, spread


def gaussian(n: int, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width))


@pytest.mark.parametrize("n", [1, 7, 8, 20])
def test_it_equals_brute_force_over_all_pairs_whatever_the_block(monkeypatch, n):
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    queries, references = gaussian(n), gaussian(30, seed=1)
    brute_force = scipy.spatial.distance.cdist(queries, references).min(axis=1)
    np.testing.assert_allclose(nearest_distances(queries, references), brute_force, rtol=1e-14)


def test_a_copy_far_from_the_origin_is_at_distance_exactly_zero():
    references = 1e4 + gaussian(20).astype(np.float32)
    np.testing.assert_array_equal(nearest_distances(references[::-1], references), 0)


def test_more_references_are_never_farther():
    queries, references = gaussian(10), gaussian(30, seed=1)
    assert (nearest_distances(queries, references) <= nearest_distances(queries, references[:10])).all()


def test_integers_do_not_wrap_around():
    queries, references = np.zeros((1, 2), np.uint8), np.full((1, 2), 200, np.uint8)
    np.testing.assert_allclose(nearest_distances(queries, references), 200 * np.sqrt(2))


@pytest.mark.parametrize(("m", "width", "sentence"), [(0, 5, "no references"), (3, 4, r"\(2, 5\) and \(3, 4\)")])
def test_bad_input_is_refused_in_a_sentence(unchecked, m, width, sentence):
    with pytest.raises(InputError, match=sentence):
        nearest_distances(gaussian(2), gaussian(m, width))


def test_the_spread_of_classes_is_the_mean_over_their_pairs():
    """Of normal points it is 2 Gamma((d + 1) / 2) / Gamma(d / 2) deviations: 2 / sqrt(pi) in one dimension."""
    points, labels = np.array([[0.0], [1.0], [3.0], [50.0], [54.0]]), np.array([0, 0, 0, 7, 7])
    assert spread(points, labels) == pytest.approx((1 + 3 + 2 + 4) / 4)
    normal = np.random.default_rng(0).normal(size=(2000, 1))
    assert spread(normal) == pytest.approx(2 / np.sqrt(np.pi), rel=0.03)
    with pytest.raises(InputError, match="no two points are of one class"):
        spread(points[:2], np.array([0, 1]))
