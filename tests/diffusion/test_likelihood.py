"""Laws of likelihoods: closed forms of a Gaussian and a mixture, unbiased estimates, and bounds that hold."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from genjax.diffusion.likelihood import (
    ExactDivergence,
    Hutchinson,
    bits_per_dim,
    chain_bound,
    continuous_bound,
    dequantised,
    discretised_log_density,
    gaussian_kl,
    log_density,
    step_bound,
)
from genjax.diffusion.predictions import Denoised, step_log_variance
from genjax.diffusion.process import RectifiedFlow, log_snr, noised, posterior, prior_std, time_of_log_snr
from genjax.diffusion.processes import DDPM, EDM, VE, VP, Trigonometric
from genjax.diffusion.targets import Gaussian, Mixture
from genjax.errors import InputError
from genjax.keys import row_keys

GAUSSIANS = [(Gaussian(), process) for process in (RectifiedFlow(), VE(sigma_min=1e-3), DDPM("cosine"))]
GAUSSIANS += [pytest.param(Gaussian(), process, marks=pytest.mark.slow) for process in (VP(), EDM())]
MIXTURES = [(Mixture(), process) for process in (RectifiedFlow(), EDM())]
X = np.random.default_rng(0).normal(size=(5, 2)) * 0.6
step_cost = jax.jit(step_bound, static_argnums=0, static_argnames="levels")


def grid(process):
    """Even in log-SNR from 7 to -7 (or as far as it goes), with the ends of the path; of a chain, all of its steps."""
    if isinstance(process, DDPM):
        return np.concatenate([np.geomspace(1e-7, 1e-3, 20, endpoint=False), np.arange(1, 1001) / 1000])
    ends = np.clip(np.asarray(log_snr(process, jnp.array([1e-7, 1.0]))), -7, 7)
    times = np.array(time_of_log_snr(process, jnp.linspace(*ends, 150)))
    return np.concatenate([[1e-7] if times[0] > 1e-6 else [], times, [1.0] if times[-1] < 1 else []])


# ---------------------------------------------------------------------------------------------- probability-flow ODE


@pytest.mark.slow
@pytest.mark.parametrize(("target", "process"), GAUSSIANS + MIXTURES, ids=lambda value: type(value).__name__)
def test_the_bits_of_an_analytic_target_are_exact_to_a_thousandth(target, process, x64):
    """Of samples of it, in the mean: of a single one, what is left of its mean at t = 1 moves the prior's density."""
    x = jnp.asarray(target.sample(row_keys(0, jnp.arange(256))), jnp.float64)
    solve = jax.jit(functools.partial(log_density, process, functools.partial(target.denoised, process)))
    found, expected = solve(x, grid(process)).log_density, target.log_density(RectifiedFlow(), x, jnp.zeros(256))
    np.testing.assert_allclose(bits_per_dim(found, 2).mean(), bits_per_dim(expected, 2).mean(), atol=1e-3)
    if isinstance(target, Gaussian):  # carried in closed form: the prior's density there, and the volume
        ends = jnp.full(256, 1e-7), jnp.ones(256)
        x_1, slope = jax.jvp(lambda x: target.carried(process, x, *ends), (x,), (jnp.ones_like(x),))
        model = norm.logpdf(x_1, 0, prior_std(process)).sum(axis=1) + np.log(slope).sum(axis=1)
        np.testing.assert_allclose(found, model, atol=4e-4)


def test_a_path_that_ends_before_time_1_has_the_prior_of_its_end(x64):
    """Of data of mean 0 and unit variance it is exact at every time, and so is the density."""
    target, process = Gaussian((0.0, 0.0), (1.0, 1.0)), EDM()
    times = np.append(1e-7, np.geomspace(1e-5, 0.1, 60))
    solve = jax.jit(functools.partial(log_density, process, functools.partial(target.denoised, process)))
    np.testing.assert_allclose(
        solve(jnp.asarray(X), times).log_density, target.log_density(process, jnp.asarray(X), 0.0 * X[:, 0]), atol=1e-4
    )


@pytest.mark.slow
def test_the_error_of_the_integrator_falls_with_the_fourth_power_of_the_step(x64):
    """Between two times, where the closed form is that of the times themselves."""
    target, process = Mixture(), Trigonometric()

    def gained(steps):
        times = np.linspace(0.1, 0.9, steps + 1)
        start = jnp.asarray(X)
        solved = log_density(process, functools.partial(target.denoised, process), start, times)
        return start, solved

    def error(steps):
        start, solved = jax.jit(gained, static_argnums=0)(steps)
        # Whatever prior it ended with is taken back, and the density of x_t at the last time put there.
        prior = norm.logpdf(solved.latent, 0, 1).sum(axis=1)
        end = target.log_density(process, solved.latent, jnp.full(5, 0.9))
        expected = target.log_density(process, start, jnp.full(5, 0.1))
        return np.abs(solved.log_density - prior + end - expected).max()

    errors = [error(steps) for steps in (80, 160)]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 4, atol=0.2)


def test_the_ode_ends_where_a_gaussian_is_carried(x64):
    process, times = Trigonometric(), np.linspace(1e-6, 1, 101)
    solved = jax.jit(functools.partial(log_density, process, functools.partial(Gaussian().denoised, process)))(X, times)
    expected = Gaussian().carried(process, jnp.asarray(X), jnp.full(5, 1e-6), jnp.ones(5))
    np.testing.assert_allclose(solved.latent, expected, atol=1e-6)


def bent(x):
    """A field of rows (B, 2, 2) that do not see one another, with a Jacobian that is not symmetric."""
    flat = x.reshape(len(x), 4)
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), x.dtype)
    return (jnp.tanh(flat @ matrix) + flat**2 @ matrix).reshape(x.shape)


def test_the_exact_divergence_is_the_trace_of_the_jacobian_of_each_row(x64):
    x = np.random.default_rng(0).normal(size=(3, 2, 2))
    value, divergence = ExactDivergence()(bent, jnp.asarray(x), None)
    jacobians = jax.jit(jax.vmap(jax.jacrev(lambda row: bent(row[None])[0])))(x).reshape(3, 4, 4)
    np.testing.assert_allclose(divergence, [np.trace(jacobian) for jacobian in jacobians], rtol=1e-10)
    np.testing.assert_array_equal(value, bent(jnp.asarray(x)))


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased(distribution, x64):
    """Its mean over 4,000 noises is the trace, within four of its own standard errors."""
    x, count = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2))), 4_000
    rows = jnp.broadcast_to(x, (count, 2, 2))
    estimate = Hutchinson(distribution)
    noise = estimate.noise(row_keys(0, jnp.arange(count)), rows)
    _, estimates = estimate(bent, rows, noise)
    _, exact = ExactDivergence()(bent, x, None)
    assert abs(estimates.mean() - exact[0]) < 4 * estimates.std() / count**0.5
    assert estimates.std() > 0.1


def test_signs_have_no_variance_where_the_jacobian_is_diagonal(x64):
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(50, 3)))
    noise = Hutchinson().noise(row_keys(0, jnp.arange(50)), rows)
    np.testing.assert_allclose(Hutchinson()(lambda x: x**3, rows, noise)[1], (3 * rows**2).sum(axis=1), rtol=1e-12)


@pytest.mark.slow
def test_a_density_by_hutchinson_is_unbiased_and_its_noise_is_fixed_for_the_solve(x64):
    target, process, count = Mixture(), Trigonometric(), 600
    x, times = jnp.broadcast_to(jnp.asarray(X[0]), (count, 2)), np.linspace(1e-4, 1, 41)
    seen = []

    class Watched(Hutchinson):
        def noise(self, keys, x):
            seen.append(keys.shape)
            return super().noise(keys, x)

    solve = functools.partial(log_density, process, functools.partial(target.denoised, process))
    keys = row_keys(0, jnp.arange(count))
    estimates = jax.jit(lambda x: solve(x, times, divergence=Watched(), keys=keys).log_density)(x)
    exact = jax.jit(lambda x: solve(x, times).log_density)(x[:1])[0]
    assert seen == [(count,)]
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / count**0.5


def test_hutchinson_without_keys_is_refused(unchecked):
    with pytest.raises(InputError, match="needs a key for each row"):
        log_density(VP(), None, jnp.zeros((1, 2)), np.array([0.0, 1.0]), divergence=Hutchinson())
    with pytest.raises(InputError, match="distribution of Hutchinson is rademacher or gaussian, not 'uniform'"):
        Hutchinson("uniform")


# ------------------------------------------------------------------------------------------------------ bits, integers


def test_bytes_without_any_structure_have_eight_bits():
    """A uniform density on [-1, 1]^D is 2^-D."""
    np.testing.assert_allclose(bits_per_dim(jnp.full(3, -4 * math.log(2)), 4), 8)
    np.testing.assert_allclose(bits_per_dim(jnp.zeros(3), 4), 7)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_levels_fill_their_bins_and_stay_in_them(levels):
    k = np.tile(np.arange(levels), 40)
    x = (2 * k / (levels - 1) - 1).astype(np.float32)[None]
    spread = np.asarray(dequantised(x, row_keys(0, jnp.arange(1)), levels))
    np.testing.assert_array_equal(np.floor((spread + 1) / 2 * levels), k[None])
    within = (spread + 1) / 2 * levels - k
    np.testing.assert_allclose([within.mean(), within.var()], [0.5, 1 / 12], atol=0.15 if levels == 2 else 0.05)


# ------------------------------------------------------------------------------------------------ Gaussians, in float64


def test_the_kl_of_gaussians_is_its_integral(x64):
    mean, std, other_mean, other_std = 0.3, 0.7, -0.4, 1.1
    x = np.linspace(-12, 12, 100_001)
    density = norm.pdf(x, mean, std)
    expected = np.trapezoid(density * (norm.logpdf(x, mean, std) - norm.logpdf(x, other_mean, other_std)), x)
    kl = gaussian_kl(jnp.asarray(other_mean - mean), jnp.asarray(2 * np.log(std)), jnp.asarray(2 * np.log(other_std)))
    np.testing.assert_allclose(kl, expected, rtol=1e-10)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.2), (-0.9, 0.01), (3.0, 0.1), (0.3, 5.0)])
def test_the_probabilities_of_all_levels_sum_to_one(levels, mean, std, x64):
    x = 2 * np.arange(levels) / (levels - 1) - 1
    log_mass = jax.jit(discretised_log_density, static_argnums=3)(
        x, jnp.asarray(mean), jnp.asarray(np.log(std)), levels
    )
    np.testing.assert_allclose(np.exp(log_mass).sum(), 1, rtol=1e-10)
    cuts = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    expected = np.diff(norm.cdf(cuts, mean, std))
    np.testing.assert_allclose(np.exp(log_mass), expected, rtol=1e-6, atol=1e-14)


def test_a_level_that_a_gaussian_misses_by_far_is_finite_and_has_a_gradient():
    def cost(mean):
        return discretised_log_density(jnp.float32(0.5), mean, jnp.float32(np.log(1e-3)))

    value, gradient = jax.jit(jax.value_and_grad(cost))(jnp.float32(-0.5))
    assert np.isfinite(value) and np.isfinite(gradient) and gradient > 0
    np.testing.assert_allclose(value, -(((1.0 - 1 / 255) / 1e-3) ** 2) / 2, rtol=1e-3)


def test_a_step_costs_the_kl_of_posterior_and_model(x64):
    """Directly, from the two means and variances of equations 6 and 7 of DDPM."""
    rng, process = np.random.default_rng(0), DDPM()
    x_0, guess, eps = rng.normal(size=(3, 4, 3))
    fraction = rng.uniform(size=(4, 3))
    s, t = np.array([0.001, 0.2, 0.5, 0.998]), np.array([0.002, 0.201, 0.501, 0.999])
    x_t = noised(process, x_0, eps, t)
    cost = step_cost(process, Denoised(guess, eps, fraction), x_0, x_t, jnp.asarray(s), jnp.asarray(t))

    n = np.round(t * 1000).astype(int)
    beta, kept = process.betas(), np.concatenate([[1], np.cumprod(1 - process.betas())])
    small = (1 - kept[n - 1]) / (1 - kept[n]) * beta[n - 1]
    variance = np.exp(fraction * np.log(beta[n - 1])[:, None] + (1 - fraction) * np.log(small)[:, None])
    from_x_0 = (np.sqrt(kept[n - 1]) * beta[n - 1] / (1 - kept[n]))[:, None]
    kl = 0.5 * (np.log(variance / small[:, None]) + (small[:, None] + (from_x_0 * (x_0 - guess)) ** 2) / variance - 1)
    np.testing.assert_allclose(cost, kl.mean(axis=1) / np.log(2), rtol=1e-6)


def test_the_last_step_costs_the_log_probability_of_the_levels(x64):
    x_0, guess = np.array([[0.0, 1.0, -1.0]]), np.array([[0.004, 0.99, -0.98]])
    t = jnp.array([0.001])
    cost = step_cost(DDPM(), Denoised(guess, guess), x_0, x_0, jnp.zeros(1), t, levels=3)
    std = np.exp(float(step_log_variance(DDPM(), 0.0, jnp.zeros(()), t[0])) / 2)
    expected = [
        norm.cdf(0.5, 0.004, std) - norm.cdf(-0.5, 0.004, std),
        norm.sf(0.5, 0.99, std),
        norm.cdf(-0.5, -0.98, std),
    ]
    np.testing.assert_allclose(cost[0], -np.log2(expected).mean(), atol=1e-12)


def test_a_perfect_denoiser_of_a_point_pays_for_no_step(x64):
    x_0 = jnp.full((3, 2), 0.2)
    s, t = jnp.array([0.1, 0.3, 0.9]), jnp.array([0.2, 0.4, 0.95])
    cost = step_cost(VP(), Denoised(x_0, x_0), x_0, x_0, s, t)
    np.testing.assert_allclose(cost, 0, atol=1e-15)
    assert posterior(VP(), s, t).variance.min() > 0


# --------------------------------------------------------------------------------------------------- variational bounds

LEVELS = 16
COUNT = 2_000


@pytest.fixture(scope="module")
def levels_of_a_gaussian():
    """Gaussian data cut to levels from -1 to 1, its denoiser, and its entropy in bits per dimension."""
    levels = 2 * np.arange(LEVELS) / (LEVELS - 1) - 1
    cuts = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    mass = np.diff(norm.cdf(cuts, 0.1, 0.35))
    x_0 = np.random.default_rng(0).choice(levels, size=(COUNT, 2), p=mass).astype(np.float32)

    def denoised(process, x, t):
        """Exact: the mean of the levels given x, each dimension by itself."""
        alpha, sigma = process.alpha(t)[:, None, None], process.sigma(t)[:, None, None]
        log_joint = jnp.log(mass) - ((x[..., None] - alpha * levels) / sigma) ** 2 / 2
        x_0 = jax.nn.softmax(log_joint, axis=-1) @ jnp.asarray(levels, x.dtype)
        return Denoised(x_0, (x - alpha[..., 0] * x_0) / sigma[..., 0])

    return x_0, denoised, -(mass * np.log2(mass)).sum()


@functools.cache
def _compiled(bound, process, denoised):
    return jax.jit(functools.partial(bound, process, functools.partial(denoised, process), levels=LEVELS))


@pytest.mark.slow
@pytest.mark.parametrize("process", [RectifiedFlow(), VP(), EDM()], ids=lambda process: type(process).__name__)
def test_the_continuous_bound_of_the_best_denoiser_is_the_entropy_of_the_data(process, levels_of_a_gaussian):
    """Kingma et al. 2021: with infinitely many steps nothing is lost."""
    x_0, denoised, entropy = levels_of_a_gaussian
    times = time_of_log_snr(process, jnp.linspace(4.5, -4.5, 129))
    bound = _compiled(continuous_bound, process, denoised)(x_0, row_keys(0, jnp.arange(COUNT)), times).total
    assert abs(bound.mean() - entropy) < 4 * bound.std() / COUNT**0.5 + 2e-3


@pytest.mark.slow
def test_the_excess_of_a_chain_over_the_entropy_falls_with_the_number_of_its_steps(levels_of_a_gaussian):
    """Kingma et al. 2021, section 4: never below it, and in proportion to the length of a step."""
    x_0, denoised, entropy = levels_of_a_gaussian
    excess = []
    for steps in (64, 256):
        times = np.concatenate([[0.0], np.asarray(time_of_log_snr(RectifiedFlow(), jnp.linspace(4.5, -5.0, steps)))])
        keys = row_keys(0, jnp.arange(COUNT))
        bound = _compiled(chain_bound, RectifiedFlow(), denoised)(x_0, keys, times.astype(np.float32)).total
        assert bound.mean() > entropy - 4 * bound.std() / COUNT**0.5
        excess.append(float(bound.mean()) - entropy)
    assert 3.5 < excess[0] / excess[1] < 5.5 and excess[1] < 0.15


def test_the_parts_of_a_bound_sum_to_it_and_the_prior_is_free_where_no_data_is_left(levels_of_a_gaussian):
    x_0, denoised, _ = levels_of_a_gaussian
    times = np.array([0.0, 0.3, 0.7, 1.0], np.float32)
    bound = _compiled(chain_bound, RectifiedFlow(), denoised)(x_0, row_keys(0, jnp.arange(COUNT)), times)
    np.testing.assert_array_equal(bound.prior, 0)
    np.testing.assert_allclose(bound.total, bound.diffusion + bound.reconstruction, rtol=1e-6)


@pytest.mark.parametrize("bound", [chain_bound, continuous_bound])
def test_every_time_of_a_bound_and_every_row_has_noise_of_its_own(bound):
    """What the denoiser sees of data that is 0 is sigma times the noise: no two times or rows share it."""
    seen, process = [], RectifiedFlow()

    def denoiser(x, t):
        eps = x / process.sigma(t)[:, None]
        jax.debug.callback(lambda eps: seen.append(np.asarray(eps)), eps)
        return Denoised(jnp.zeros_like(x), eps)

    times = np.array([0.1, 0.3, 0.6, 0.9])
    jax.jit(lambda x: bound(process, denoiser, x, row_keys(0, jnp.arange(3)), times))(jnp.zeros((3, 16)))
    jax.effects_barrier()
    rows = np.concatenate(seen)
    correlation = np.corrcoef(rows)
    assert len(rows) >= 9 and np.abs(correlation - np.eye(len(rows))).max() < 0.95
    np.testing.assert_allclose(rows.var(), 1, atol=0.4)
