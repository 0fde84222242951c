"""Laws of the densities in the plane."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from genjax.data import EightGaussians, Rings, TwentyFiveGaussians, TwoMoons
from genjax.data.densities import Checkerboard, Pinwheel, grid_entropy
from genjax.errors import InputError

ALL = [TwoMoons(), Rings(), Pinwheel(), Checkerboard(), EightGaussians(), TwentyFiveGaussians()]


def name(density) -> str:
    return type(density).__name__


@pytest.fixture(scope="module")
def drawn():
    """The training points of each density, as the rows of an array."""
    return {name(density): np.stack([example["point"] for example in density.source("train")]) for density in ALL}


STEP = 1 / 32


@pytest.fixture(scope="module")
def grids():
    """The log-density of each at the midpoints of a grid over [-6, 6]^2, for which a Gaussian of 0.05 is smooth."""
    axis = np.arange(-6, 6, STEP) + STEP / 2
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    return {name(density): density.log_density(points.reshape(-1, 2)).reshape(384, 384) for density in ALL}


@pytest.mark.parametrize("density", ALL, ids=name)
def test_a_density_integrates_to_one(density, grids):
    assert np.exp(grids[name(density)]).sum() * STEP**2 == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("density", ALL, ids=name)
def test_the_entropy_is_the_mean_surprise_of_the_points_within_four_standard_errors(density, drawn):
    surprise = -density.log_density(drawn[name(density)])
    error = surprise.std() / math.sqrt(len(surprise))
    assert abs(surprise.mean() - density.entropy) <= 4 * error + 1e-12


@pytest.mark.parametrize("density", ALL, ids=name)
def test_the_entropy_is_that_of_the_midpoint_rule_on_another_grid(density, grids):
    logs = np.maximum(grids[name(density)], -700)
    assert density.entropy == pytest.approx(-(np.exp(logs) * logs).sum() * STEP**2, abs=1e-7)


@pytest.mark.parametrize("density", ALL, ids=name)
def test_the_points_lie_as_the_density_says(density, drawn, grids):
    """Pearson's statistic over the cells of a board, against the density's integral over each; 5 sigma."""
    mass = np.exp(grids[name(density)]).reshape(24, 16, 24, 16).sum(axis=(1, 3)) * STEP**2
    edges, expected = np.linspace(-6, 6, 25), mass * len(drawn[name(density)])
    counts = np.histogram2d(*drawn[name(density)].T, bins=[edges, edges])[0]
    seen = expected > 5
    chi2, freedom = (np.square(counts - expected)[seen] / expected[seen]).sum(), seen.sum() - 1
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom) + 1


@pytest.mark.parametrize("density", ALL, ids=name)
def test_points_are_the_same_every_time_and_no_test_point_is_a_training_point(density, drawn):
    again = replace(density).source("train")
    assert len(again) == density.points == 50_000
    assert all(np.array_equal(again[row]["point"], drawn[name(density)][row]) for row in (0, 1, 49_999))
    assert again[0]["point"].dtype == np.float32 and again[0]["point"].shape == (2,)
    test = density.source("test")
    assert len(test) == density.test_points == 10_000
    assert not set(map(bytes, drawn[name(density)])) & {bytes(example["point"]) for example in test}


def test_fewer_points_of_a_density_are_drawn_from_the_same_one():
    few = replace(TwoMoons(), points=7, test_points=3)
    assert (len(few.source("train")), len(few.source("test"))) == (7, 3)
    assert few.entropy == TwoMoons().entropy


def test_the_entropy_of_a_gaussian_by_grid_is_its_closed_form():
    def log_density(points):
        return -np.square(points).sum(axis=1) / 2 - math.log(2 * math.pi)

    assert grid_entropy(log_density, np.full(2, -9.0), np.full(2, 9.0), 0.5) == pytest.approx(
        math.log(2 * math.pi * math.e), abs=1e-12
    )


def test_a_pinwheel_that_does_not_bend_is_a_mixture_of_gaussians():
    straight = Pinwheel(rate=0.0, arms=1, scale=1.0)
    points = np.array([[1.0, 0.0], [1.3, 0.1]])
    peak = -math.log(2 * math.pi * 0.3 * 0.1)
    np.testing.assert_allclose(straight.log_density(points), [peak, peak - 1], rtol=0, atol=1e-12)


def test_the_board_is_empty_beside_and_between_its_fields():
    board = Checkerboard()
    points = np.array([[-3, -3], [-3, -1], [-1, -1], [3, 3], [5, 5], [-5, -5], [4.5, 3]])
    occupied = [True, False, True, True, False, False, False]
    np.testing.assert_array_equal(board.log_density(points), np.where(occupied, -math.log(32), -math.inf))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TwoMoons(noise=0.0), "noise is 0.0; it must be 0.01 or more"),
        (lambda: TwoMoons(noise=math.inf), "noise is inf; it must be 0.01 or more, and finite"),
        (lambda: Rings(points=0), "points is 0; it must be 1 or more"),
        (lambda: Rings(test_points=-1), "test_points is -1; it must be 1 or more"),
        (lambda: Rings(radii=()), "radii is (); expected one radius or more"),
        (lambda: Rings(radii=(1.0, math.nan)), "radii is (1.0, nan); expected one radius or more"),
        (lambda: Pinwheel(tangential=-1.0), "tangential is -1.0; it must be above 0, and finite"),
        (lambda: Pinwheel(scale=math.inf), "scale is inf; it must be above 0, and finite"),
        (lambda: Pinwheel(arms=0), "arms is 0; it must be above 0, and finite"),
        (lambda: Pinwheel(rate=math.nan), "rate is nan; it must be finite"),
        (lambda: Checkerboard(side=0.0), "side is 0.0; it must be above 0, and finite"),
        (lambda: EightGaussians(radius=0.0), "radius is 0.0; it must be above 0, and finite"),
        (lambda: TwentyFiveGaussians(spacing=0.0), "spacing is 0.0; it must be above 0, and finite"),
        (lambda: TwentyFiveGaussians(spacing=-2.0), "spacing is -2.0; it must be above 0, and finite"),
    ],
)
def test_what_has_no_density_is_refused(make, sentence):
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}"):
        make()
