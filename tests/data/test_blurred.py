"""Laws of blurred figures: quadratures against closed forms, and modes."""

import math

import numpy as np
import pytest

from genjax.data.blurred import EightGaussians, Rings, TwentyFiveGaussians, TwoMoons, _log_mixture


@pytest.mark.parametrize("noise", [0.05, 0.2, 1.0])
def test_rings_in_closed_form_equal_the_quadrature_around_each_circle(noise):
    rings = Rings(noise=noise)
    points = np.random.RandomState(0).randn(200, 2) * 2
    quadrature = _log_mixture(points, *rings.centres(), noise)
    near = quadrature > -200  # of what is farther the float64 of the quadrature has no digits left to compare
    np.testing.assert_allclose(rings.log_density(points)[near], quadrature[near], rtol=0, atol=1e-11)


def test_a_ring_of_no_radius_is_a_gaussian():
    gaussian = Rings(radii=(0.0,), noise=0.5)
    assert gaussian.entropy == pytest.approx(math.log(2 * math.pi * math.e * 0.25), abs=1e-5)


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.3])
def test_twice_the_nodes_along_the_moons_change_nothing(noise, monkeypatch):
    points = np.random.RandomState(0).uniform(-2, 3, (300, 2))
    once = TwoMoons(noise=noise).log_density(points)
    monkeypatch.setattr("genjax.data.blurred.NODES_PER_NOISE", 8)
    twice = TwoMoons(noise=noise).log_density(points)
    near = twice > -100
    assert near.sum() > 50
    np.testing.assert_allclose(once[near], twice[near], rtol=0, atol=1e-10)


def test_the_entropy_of_gaussians_that_do_not_touch_is_that_of_one_and_of_the_choice():
    apart = TwentyFiveGaussians()
    assert apart.entropy == pytest.approx(math.log(25 * 2 * math.pi * math.e * apart.noise**2), abs=1e-10)


@pytest.mark.parametrize(("density", "count"), [(TwentyFiveGaussians(), 25), (EightGaussians(), 8)], ids=["25", "8"])
def test_every_mode_is_found_by_the_points_equally_often(density, count):
    points = np.stack([example["point"] for example in density.source("train")])
    squares = np.square(points[:, None] - density.modes).sum(axis=-1)
    found = np.bincount(squares.argmin(axis=1)[squares.min(axis=1) < (3 * density.noise) ** 2], minlength=count)
    assert len(found) == count
    within = len(points) * (1 - math.exp(-4.5)) / count  # a plane Gaussian within 3 sigma
    assert np.abs(found - within).max() < 5 * math.sqrt(within)
