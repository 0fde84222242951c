"""Laws of noise processes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.grids import GivenTimes, KarrasSigmas, UniformTimes, grid_times
from genjax.diffusion.process import (
    RectifiedFlow,
    coefficients,
    like,
    log_snr,
    noised,
    pace,
    posterior,
    prior_std,
    sde,
    time_of_log_snr,
    transition,
    velocity,
)
from genjax.diffusion.processes import EDM, VE
from genjax.diffusion.solvers import DPMpp2M, integrate
from genjax.diffusion.targets import Gaussian

T = jnp.linspace(0.05, 0.95, 7)

# Laws are of seven times wherever they can be: what is computed operation by operation is compiled once for all of
# them and for all processes. What would be compiled anew each time, loops and derivatives, is one program per process.
there_and_back = jax.jit(lambda process, t: time_of_log_snr(process, log_snr(process, t)), static_argnums=0)
times_of = jax.jit(time_of_log_snr, static_argnums=0)


def test_a_rectified_flow_has_constant_derivatives():
    c = coefficients(RectifiedFlow(), T)
    np.testing.assert_array_equal(c.alpha, 1 - T)
    np.testing.assert_array_equal(c.sigma, T)
    np.testing.assert_array_equal(c.d_alpha, -np.ones(7))
    np.testing.assert_array_equal(c.d_sigma, np.ones(7))


def test_the_derivatives_of_the_cosine_process_are_analytic(cosine):
    c = coefficients(cosine, T)
    np.testing.assert_allclose(c.d_alpha, -np.pi / 2 * np.sin(np.pi * T / 2), rtol=1e-6)
    np.testing.assert_allclose(c.d_sigma, np.pi / 2 * np.cos(np.pi * T / 2), rtol=1e-6)


def test_a_path_starts_at_the_data_and_ends_at_noise(cosine, x_0_and_eps):
    x_0, eps = x_0_and_eps
    for process in (RectifiedFlow(), cosine):
        np.testing.assert_array_equal(noised(process, x_0, eps, jnp.zeros(7)), x_0)
        np.testing.assert_allclose(noised(process, x_0, eps, jnp.ones(7)), eps, atol=1e-6)


def test_velocity_is_the_time_derivative_of_the_noised_sample(process, x_0_and_eps):
    x_0, eps = x_0_and_eps
    _, derivative = jax.jvp(lambda t: noised(process, x_0, eps, t), (T,), (jnp.ones_like(T),))
    np.testing.assert_allclose(velocity(process, x_0, eps, T), derivative, rtol=1e-5, atol=1e-6)


def test_every_sample_of_a_batch_has_its_own_time(process, x_0_and_eps):
    x_0, eps = x_0_and_eps
    alone = [noised(process, x_0[i : i + 1], eps[i : i + 1], T[i : i + 1])[0] for i in range(7)]
    np.testing.assert_allclose(noised(process, x_0, eps, T), np.stack(alone), rtol=1e-6)


def test_one_time_serves_a_whole_batch(process, x_0_and_eps):
    x_0, eps = x_0_and_eps
    np.testing.assert_array_equal(noised(process, x_0, eps, T[2]), noised(process, x_0, eps, jnp.full(7, T[2])))


def test_log_snr_of_a_rectified_flow_is_minus_the_logit_of_time():
    np.testing.assert_allclose(log_snr(RectifiedFlow(), T), -jax.scipy.special.logit(T), atol=1e-6)


def test_log_snr_decreases_over_the_whole_path(any_process):
    assert (np.diff(jax.jit(lambda t: log_snr(any_process, t))(jnp.linspace(0, 1, 101))) < 0).all()


def test_log_snr_is_infinite_at_the_ends_of_a_path(process):
    assert log_snr(process, jnp.zeros(())) == np.inf
    assert log_snr(RectifiedFlow(), jnp.ones(())) == -np.inf


def both_precisions(function, t):
    """Its values at times t, in float32 and in float64."""
    single = jax.jit(function)(jnp.asarray(t, jnp.float32))
    with jax.enable_x64(True):
        double = jax.jit(function)(jnp.asarray(np.float32(t), jnp.float64))
    assert {a.dtype for a in jax.tree.leaves(single)} == {jnp.dtype("float32")}
    return single, double


EARLY, LATE = [0.0, 1e-7, 1e-5, 1e-3, 0.0105, 0.3], [0.7, 0.95, 0.99, 0.9985]


def test_single_precision_loses_no_digits_near_the_data(any_process):

    def everything(t):
        return (coefficients(any_process, t), sde(any_process, t)), log_snr(any_process, t)

    single, double = both_precisions(everything, EARLY + LATE)
    np.testing.assert_allclose(single[1], double[1], rtol=1e-5, atol=1e-4)
    single, double = (jax.tree.map(lambda a: np.asarray(a)[: len(EARLY)], found[0]) for found in (single, double))
    for one, other in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
        # Time 0 is read as 1e-19 and 1e-154: what is infinite there is merely large.
        finite = np.abs(other) < 1e9
        np.testing.assert_allclose(one[finite], other[finite], rtol=1e-4, atol=1e-6)


def test_the_time_of_a_log_snr_is_its_inverse(any_process, x64):
    t = np.array([1e-4, 0.01, 0.123, 0.5, 0.77, 0.9, 0.999])
    np.testing.assert_allclose(there_and_back(any_process, t), t, rtol=1e-10)


def test_the_time_of_a_log_snr_has_seven_digits_in_single_precision_wherever_it_lies():
    t = np.array([3e-6, 1e-4, 0.01, 0.5, 0.9], np.float32)
    np.testing.assert_allclose(there_and_back(RectifiedFlow(), t), t, rtol=1e-5)


def test_a_log_snr_out_of_range_is_at_the_nearest_end(any_process):
    t = times_of(any_process, np.array([99.0, -99.0], np.float32))
    np.testing.assert_allclose(t, [0, 1], atol=1e-6)


def test_the_slope_of_the_time_of_a_log_snr_is_one_over_that_of_the_log_snr(any_process, x64):

    @jax.jit
    def product(t):
        wanted, forth = jax.value_and_grad(lambda t: log_snr(any_process, t))(t)
        return forth * jax.grad(lambda s: time_of_log_snr(any_process, s))(wanted)

    np.testing.assert_allclose(product(0.4203), 1, rtol=1e-9)


def test_the_prior_has_the_deviation_that_data_of_unit_variance_ends_with(any_process):
    expected = {"VE": 50, "EDM": 80, "Curved": 2}.get(type(any_process).__name__, 1)
    np.testing.assert_allclose(prior_std(any_process), expected, rtol=3e-4 if expected == 50 else 1e-4)


@pytest.mark.parametrize("process", [EDM(), VE(), RectifiedFlow()], ids=lambda process: type(process).__name__)
@pytest.mark.parametrize(
    "grid", [UniformTimes(), UniformTimes(first=0.5), KarrasSigmas(s_max=4.0), GivenTimes((0.7, 0.0))], ids=str
)
def test_from_every_start_of_a_grid_an_exact_denoiser_leads_the_prior_to_the_deviation_of_unit_data(process, grid):
    """Along the flow, on a fine grid between the ends of the given one; VE's end has its own sigma_min."""
    ends = grid_times(grid, process, 1)
    times = np.array(times_of(process, jnp.linspace(*_finite_log_snrs(process, ends), 200)))
    times[0] = ends[0]
    z = jnp.array([[-1.0], [2.0]])
    x = _carried(process, prior_std(process, ends[0]) * z, times)
    np.testing.assert_allclose(x / z, prior_std(process, times[-1]), rtol=2e-3)
    np.testing.assert_allclose(x / z, 1, rtol=1e-2)


@functools.partial(jax.jit, static_argnums=0)
def _carried(process, x, times):
    """By the exact denoiser of unit data; a program for all grids."""
    return integrate(DPMpp2M(), process, functools.partial(Gaussian((0.0,), (1.0,)).denoised, process), x, times)


def _finite_log_snrs(process, ends):
    return np.clip(log_snr(process, jnp.asarray(ends, jnp.float32)), -5, 5)


def test_the_pace_is_how_fast_the_log_snr_falls(any_process, x64):
    _, slope = jax.jvp(lambda t: log_snr(any_process, t), (jnp.float64(T),), (jnp.ones(7),))
    np.testing.assert_allclose(pace(any_process, jnp.float64(T)), -slope, rtol=1e-9)


@pytest.fixture(scope="module")
def noise():
    """Of 5,000 points at the start and in each of 400 steps, for every process."""
    return np.random.default_rng(0).standard_normal((401, 5_000), np.float32)


def test_simulating_the_sde_forward_gives_the_marginals_of_the_process(any_process, noise):
    """Euler-Maruyama from points x_0, in log-SNR-even steps; mean and variance within four standard errors."""
    (_, count), steps, x_0, start, end = noise.shape, len(noise) - 1, 1.5, 0.05, 0.9
    ends = log_snr(any_process, jnp.array([start, end]))

    @jax.jit
    def drifts_and_variances(ends):
        grid = time_of_log_snr(any_process, jnp.linspace(*ends, steps + 1)).at[-1].set(end)
        f, g2 = sde(any_process, grid[:-1])
        return grid[0], f * jnp.diff(grid), g2 * jnp.diff(grid)

    first, drift, variance = drifts_and_variances(ends)
    x = any_process.alpha(first) * x_0 + any_process.sigma(first) * noise[0]
    x = np.asarray(x)
    for growth, fresh in zip(1 + np.asarray(drift), np.sqrt(variance)[:, None] * noise[1:], strict=True):
        x = growth * x + fresh
    x = np.float64(x)
    alpha, sigma = float(any_process.alpha(jnp.float32(end))), float(any_process.sigma(jnp.float32(end)))
    assert abs(x.mean() - alpha * x_0) < 4 * sigma / count**0.5
    # The bias of first-order steps, of relative size (log-SNR step) / 2 at most, comes on top of Monte-Carlo error.
    bias = float(ends[0] - ends[1]) / steps
    assert abs(x.var() / sigma**2 - 1) < 4 * (2 / count) ** 0.5 + bias


def test_a_transition_carries_a_marginal_to_a_later_one(any_process, x64):
    s, t = jnp.array([0.0, 0.02, 0.3, 0.5, 0.5, 0.6, 0.7]), jnp.array([0.1, 0.021, 0.9, 0.999, 0.51, 0.65, 0.95])
    scale, variance = transition(any_process, s, t)
    np.testing.assert_allclose(scale * any_process.alpha(s), any_process.alpha(t), rtol=1e-12)
    np.testing.assert_allclose(scale**2 * any_process.sigma(s) ** 2 + variance, any_process.sigma(t) ** 2, rtol=1e-10)


def test_a_transition_through_a_time_between_is_the_whole_transition(any_process, x64):
    s, r, t = (jnp.full(7, time) for time in (0.2, 0.45, 0.7))
    first, second, whole = (transition(any_process, *ends) for ends in ((s, r), (r, t), (s, t)))
    np.testing.assert_allclose(second.scale * first.scale, whole.scale, rtol=1e-12)
    np.testing.assert_allclose(second.scale**2 * first.variance + second.variance, whole.variance, rtol=1e-10)


def test_the_variance_of_a_short_transition_is_the_diffusion_times_its_length(any_process, x64):
    t, step = jnp.full(7, 0.3505), 1e-6
    variance = transition(any_process, t - step / 2, t + step / 2).variance
    np.testing.assert_allclose(variance / step, sde(any_process, t).squared_diffusion, rtol=1e-4)


def test_the_posterior_is_that_of_two_gaussians(any_process, x64):
    """Bayes: precisions add, and so do means times precisions."""
    s, t = jnp.array([0.02, 0.3, 0.5, 0.5, 0.6, 0.7, 0.9]), jnp.array([0.021, 0.9, 0.999, 0.51, 0.65, 0.95, 0.92])
    step, back = transition(any_process, s, t), posterior(any_process, s, t)
    precision = 1 / any_process.sigma(s) ** 2 + step.scale**2 / step.variance
    np.testing.assert_allclose(back.variance * precision, 1, rtol=1e-9)
    np.testing.assert_allclose(back.log_variance, -np.log(precision), atol=1e-9)
    np.testing.assert_allclose(back.of_x_t * precision, step.scale / step.variance, rtol=1e-9)
    np.testing.assert_allclose(back.of_x_0 * precision, any_process.alpha(s) / any_process.sigma(s) ** 2, rtol=1e-9)


def test_the_posterior_at_time_0_is_the_data(process):
    back = posterior(process, jnp.zeros(3), jnp.array([0.1, 0.5, 0.9]))
    np.testing.assert_array_equal(back.of_x_0, 1)
    np.testing.assert_array_equal([back.of_x_t, back.variance], np.zeros((2, 3)))


def test_the_posterior_of_pure_noise_knows_the_data_alone():
    back = posterior(RectifiedFlow(), jnp.array([0.0, 0.5]), jnp.ones(2))
    np.testing.assert_array_equal(back.of_x_t, 0)
    np.testing.assert_array_equal(back.of_x_0, [1, 0.5])
    np.testing.assert_array_equal(back.variance, [0, 0.25])


def test_times_take_the_axes_of_what_they_meet():
    assert like(jnp.zeros(3), jnp.zeros((3, 4, 5))).shape == (3, 1, 1)
    assert like(jnp.zeros(()), jnp.zeros((3, 4))).shape == (1, 1)
