"""Laws of time densities and of the shift."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from genjax.diffusion.times import CosMap, LogitNormal, Mode, Uniform, shifted
from genjax.errors import InputError

MODE_LIMITS = (-1.0, 2 / (math.pi - 2))
SMOOTH = [Uniform(), LogitNormal(), LogitNormal(0.5, 0.7), Mode(), Mode(-0.9), Mode(1.5), CosMap()]
ALL = SMOOTH + [Mode(scale) for scale in MODE_LIMITS]

every_density = pytest.mark.parametrize("times", ALL, ids=str)
every_smooth_density = pytest.mark.parametrize("times", SMOOTH, ids=str)


@functools.cache
def curves(times):
    """u -> t = quantile(u), quantile'(u) and density(t), compiled once for every law."""

    def evaluate(u):
        t, slope = jax.jvp(times.quantile, (u,), (jnp.ones_like(u),))
        return t, slope, times.density(t)

    return jax.jit(evaluate)


def probabilities(times, edges: np.ndarray) -> np.ndarray:
    """The integral of the density over each bin, by Gauss-Legendre quadrature."""
    points, weights = np.polynomial.legendre.leggauss(64)
    middles, halves = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    t = middles[:, None] + halves[:, None] * points
    return np.asarray(jax.jit(times.density)(t)) @ weights * halves


# An even number of points: the density of the steepest mode is infinite at 1/2.
U = np.linspace(0.01, 0.99, 100)


@every_density
def test_the_density_is_one_over_the_slope_of_the_quantile(times, x64):
    _, slope, density = curves(times)(U)
    np.testing.assert_allclose(density * slope, 1, rtol=1e-8)


@every_smooth_density
def test_the_density_integrates_to_one_and_samples_follow_it(times, x64):
    count, edges = 100_000, np.linspace(0, 1, 21)
    expected = probabilities(times, edges)
    np.testing.assert_allclose(expected.sum(), 1, atol=1e-5)
    samples = jax.jit(times.quantile)(np.random.default_rng(0).uniform(size=count))
    share = np.histogram(samples, edges)[0] / count
    np.testing.assert_array_less(np.abs(share - expected), 5 * np.sqrt(expected / count))


@every_density
def test_the_quantile_increases_from_zero_to_one(times):
    t = np.asarray(jax.jit(times.quantile)(np.linspace(0, 1, 1001, dtype=np.float32)))
    assert (np.diff(t) > (0 if times in SMOOTH else -1e-7)).all()
    assert t.min() >= 0 and t.max() <= 1
    np.testing.assert_allclose(t[[0, -1]], [0, 1], atol=1e-6)


@pytest.mark.parametrize("times", [t for t in ALL if t != LogitNormal(0.5, 0.7)], ids=str)
def test_the_mass_is_symmetric_about_one_half(times, x64):
    t, _, density = curves(times)(U)
    np.testing.assert_allclose(t[::-1], 1 - t, atol=1e-12)
    np.testing.assert_allclose(density[::-1], density, rtol=1e-8)


@pytest.mark.parametrize("mean", [-1.0, 0.0, 0.5])
def test_the_median_of_a_logit_normal_is_the_sigmoid_of_its_mean(mean):
    np.testing.assert_allclose(LogitNormal(mean, 0.7).quantile(jnp.array(0.5)), expit(mean), rtol=1e-6)


def test_the_logit_of_a_logit_normal_time_is_normal():
    u = np.random.default_rng(0).uniform(size=100_000)
    t = jax.jit(LogitNormal(0.5, 0.7).quantile)(u)
    np.testing.assert_allclose([np.mean(logit(t)), np.std(logit(t))], [0.5, 0.7], atol=0.01)


@pytest.mark.parametrize("scale", [-1.0, -0.5, 0.0, 1.29, *MODE_LIMITS])
def test_mode_is_the_formula_of_the_paper_with_u_reversed(scale, x64):
    u = np.linspace(0, 1, 11)
    paper = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    np.testing.assert_allclose(Mode(scale).quantile(1 - u), paper, atol=1e-14)


def test_mode_of_scale_zero_is_uniform(x64):
    t = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(Mode(0.0).density(t), 1)


def test_the_ends_of_modes_range_are_where_the_quantile_stops_increasing(x64):
    slopes = [jax.grad(Mode(scale).quantile)(u) for scale, u in zip(MODE_LIMITS, (0.0, 0.5), strict=True)]
    np.testing.assert_allclose(slopes, 0, atol=1e-12)


def test_cosmap_is_the_formula_of_the_paper():
    u = np.linspace(0.0, 0.99, 12)
    np.testing.assert_allclose(CosMap().quantile(jnp.asarray(u)), 1 - 1 / (np.tan(np.pi * u / 2) + 1), atol=1e-6)


def test_cosmap_gives_a_rectified_flow_the_log_snr_of_the_cosine_schedule():
    u = np.linspace(0.05, 0.95, 12)
    cosine = np.log(np.cos(np.pi * u / 2) / np.sin(np.pi * u / 2))
    np.testing.assert_allclose(-logit(CosMap().quantile(jnp.asarray(u))), cosine, atol=1e-5)


@pytest.mark.parametrize("scale", [-1.01, 1.76, math.nan])
def test_a_mode_scale_out_of_range_is_refused(scale):
    with pytest.raises(InputError, match=rf"lies in \[-1, 2 / \(pi - 2\)\], not at {scale}"):
        Mode(scale)


@pytest.mark.parametrize("std", [0, -1])
def test_a_logit_normal_without_spread_is_refused(std):
    with pytest.raises(InputError, match=f"is positive, not {std}"):
        LogitNormal(0.0, std)


shifts = st.floats(0.1, 10)
unit = st.floats(0, 1)


@given(unit, shifts, shifts)
def test_shifts_compose_by_multiplying(t, a, b):
    np.testing.assert_allclose(shifted(shifted(t, a), b), shifted(t, a * b), atol=1e-12)


@given(unit, shifts)
def test_the_inverse_shift_undoes_a_shift(t, shift):
    np.testing.assert_allclose(shifted(shifted(t, shift), 1 / shift), t, atol=1e-12)


@given(st.floats(0.01, 0.99), shifts)
def test_a_shift_adds_its_log_to_the_logit_of_time(t, shift):
    np.testing.assert_allclose(logit(shifted(t, shift)), logit(t) + np.log(shift), atol=1e-9)


@given(shifts)
def test_a_shift_keeps_the_ends_and_moves_the_middle_towards_noise(shift):
    assert shifted(0.0, shift) == 0
    np.testing.assert_allclose(shifted(1.0, shift), 1)
    np.testing.assert_allclose(shifted(0.5, shift), shift / (1 + shift))
