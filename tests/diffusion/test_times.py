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
from scipy.stats import kstest, norm

from genjax.diffusion.process import RectifiedFlow, log_snr
from genjax.diffusion.processes import EDM, VE, VP, Trigonometric
from genjax.diffusion.times import (
    Antithetic,
    ChainSteps,
    CosMap,
    Independent,
    LogitNormal,
    LogNormal,
    Mode,
    Stratified,
    Uniform,
    UniformLogSNR,
    shifted,
)
from genjax.errors import InputError
from genjax.keys import row_keys

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


# ------------------------------------------------------------------------------------------- densities of the noise

OF_NOISE = [LogNormal(), UniformLogSNR(0.01, 0.8)]

every_density_of_noise = pytest.mark.parametrize("times", OF_NOISE, ids=str)
by_process = pytest.mark.parametrize("process", [RectifiedFlow(), VP(), EDM()], ids=lambda p: type(p).__name__)


@functools.cache
def curves_of_noise(times, process):
    """Of u between 0 and 1: t = quantile(u), quantile'(u), density(t), -log-SNR(t) and its slope; u as `parts` are."""

    @jax.jit
    def evaluate(u):
        t, slope = jax.jvp(lambda u: times.quantile(u, process), (u,), (jnp.ones_like(u),))
        level, pace = jax.jvp(lambda t: -log_snr(process, t), (t,), (jnp.ones_like(t),))
        return t, slope, times.density(t, process), level, pace

    parts = [U, np.random.default_rng(0).uniform(size=4_000), np.linspace(1e-9, 1 - 1e-9, 4_001)]
    cuts = np.cumsum([len(part) for part in parts])[:-1]
    return list(zip(*(np.split(np.asarray(curve), cuts) for curve in evaluate(np.concatenate(parts))), strict=True))


@by_process
@every_density_of_noise
def test_a_density_of_noise_is_one_over_the_slope_of_its_quantile(times, process, x64):
    _, slope, density, _, _ = curves_of_noise(times, process)[0]
    np.testing.assert_allclose(density * slope, 1, rtol=1e-7)


@by_process
@every_density_of_noise
def test_drawn_times_pass_kolmogorov_smirnov_against_the_integral_of_the_density(times, process, x64):
    _, (t, *_, level_of_t, _), (_, _, density, level, pace) = curves_of_noise(times, process)
    # The integral over log-SNR, in which all of these are smooth on every process.
    density = density / pace
    cumulated = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(level))])
    np.testing.assert_allclose(cumulated[-1], 1, atol=2e-3)
    assert kstest(np.interp(level_of_t, level, cumulated), "uniform").pvalue > 0.01


def test_the_noise_of_a_log_normal_is_that_of_edm_under_any_process():
    u = np.random.default_rng(0).uniform(size=4_000).astype(np.float32)

    @jax.jit
    def noises(u):
        return [-log_snr(p, LogNormal().quantile(u, p)) for p in (RectifiedFlow(), Trigonometric(), EDM())]

    for noise in noises(u):
        assert kstest(np.float64(noise), norm(-1.2, 1.2).cdf).pvalue > 0.01


def test_a_log_normal_is_cut_where_a_process_has_no_noise_left_or_no_more():
    process = VE(sigma_min=0.2, sigma_max=0.4)
    u = jnp.linspace(0.001, 0.999, 99)
    noise = jax.jit(lambda u: jnp.exp(-log_snr(process, LogNormal().quantile(u, process))))(u)
    assert (noise > 0.2).all() and (noise < 0.4).all() and (np.diff(noise) > 0).all()


def test_a_uniform_log_snr_is_uniform():
    u = np.linspace(0.001, 0.999, 99, dtype=np.float32)
    t = jax.jit(lambda u: UniformLogSNR().quantile(u, Trigonometric()))(u)
    ends = log_snr(Trigonometric(), jnp.array([1e-5, 1 - 1e-5]))
    np.testing.assert_allclose(log_snr(Trigonometric(), t), ends[0] + (ends[1] - ends[0]) * u, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LogNormal(std=0.0), "std of LogNormal is positive, not 0.0"),
        (lambda: LogNormal(mean=math.nan), "mean of LogNormal is finite, not nan"),
        (lambda: LogitNormal(mean=math.inf), "mean of a LogitNormal time density is finite, not inf"),
        (lambda: LogitNormal(std=math.nan), "std of a LogitNormal time density is positive, not nan"),
        (lambda: UniformLogSNR(0.5, 0.4), "start and end of UniformLogSNR lie in"),
        (lambda: ChainSteps(0), "steps of ChainSteps is at least 1, not 0"),
    ],
)
def test_what_is_no_density_is_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_the_steps_of_a_chain_are_equally_likely():
    u = (np.arange(4000, dtype=np.float32) + 0.5) / 4000
    t, counts = np.unique(ChainSteps(10).quantile(u), return_counts=True)
    np.testing.assert_allclose(t, np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_array_equal(counts, 400)
    np.testing.assert_allclose(ChainSteps(10).quantile(jnp.array([0.0, 1.0])), [0.1, 1.0])
    np.testing.assert_array_equal(ChainSteps(10).density(jnp.array([0.1, 0.15, 0.7])), [np.inf, 0, np.inf])


# -------------------------------------------------------------------------------------------------- draws of a batch

BATCHES = jax.vmap(lambda seed: row_keys(seed, jnp.arange(8)))(jnp.arange(1500))
"""The keys of 1,500 batches of 8 rows."""


@functools.cache
def drawn(draws):
    return np.asarray(jax.jit(jax.vmap(draws))(BATCHES))


every_draw = pytest.mark.parametrize("draws", [Independent(), Stratified(), Antithetic()], ids=str)


@every_draw
@pytest.mark.parametrize("row", [0, 3])
def test_each_row_of_a_batch_is_uniform_whatever_its_place(draws, row):
    assert kstest(np.float64(drawn(draws)[:, row]), "uniform").pvalue > 0.01


@every_draw
def test_no_draw_is_0_or_1(draws):
    assert drawn(draws).dtype == np.float32
    assert (drawn(draws) > 0).all() and (drawn(draws) < 1).all()


def test_an_independent_row_depends_on_its_own_key_alone():
    keys = row_keys(0, jnp.arange(8))
    np.testing.assert_array_equal(Independent()(keys)[3:5], Independent()(keys[3:5]))
    assert not Independent().couples_rows and Stratified().couples_rows and Antithetic().couples_rows


def test_antithetic_rows_are_at_even_distances():
    np.testing.assert_allclose(np.diff(np.sort(drawn(Antithetic()), axis=1), axis=1), 1 / 8, atol=1e-6)


def test_stratified_rows_have_one_in_each_arc():
    """Of eight arcs of equal length, from wherever one begins: neighbours are less than two arcs apart."""
    rows = np.sort(drawn(Stratified()), axis=1)
    gaps = np.diff(np.concatenate([rows, rows[:, :1] + 1], axis=1), axis=1)
    assert gaps.max() < 2 / 8 and gaps.min() >= 0


@pytest.mark.parametrize(("draws", "at_most"), [(Stratified(), 0.15), (Antithetic(), 0.02)], ids=str)
def test_coupled_rows_have_the_mean_and_a_fraction_of_the_variance_of_independent_ones(draws, at_most):
    """Of the mean of a smooth periodic function, at eight rows."""
    coupled, free = (np.sin(2 * np.pi * drawn(d)) + np.cos(4 * np.pi * drawn(d)) for d in (draws, Independent()))
    assert abs(coupled.mean()) < 4 * free.std() / free.size**0.5
    assert coupled.mean(axis=1).var() < at_most * free.mean(axis=1).var()


@pytest.mark.parametrize("mean", [30.0, -30.0])
@pytest.mark.parametrize("asked", [LogNormal.quantile, LogNormal.density])
def test_a_log_normal_outside_the_noise_of_its_process_is_refused_while_a_program_is_traced_too(mean, asked):
    process = EDM() if mean > 0 else VE()
    with pytest.raises(InputError, match=f"has next to nothing in the noise of {type(process).__name__}, whose log"):
        jax.jit(lambda u: asked(LogNormal(mean=mean), u, process))(jnp.array([0.1, 0.5]))
