"""Laws of the denoising loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from genjax.diffusion.likelihood import step_bound
from genjax.diffusion.losses import denoising_loss
from genjax.diffusion.predictions import Eps, LearnedVariance, Preconditioned, Velocity
from genjax.diffusion.process import RectifiedFlow, coefficients, like, noised, velocity
from genjax.diffusion.processes import DDPM, EDM, VP
from genjax.diffusion.targets import Gaussian
from genjax.diffusion.times import Uniform, UniformLogSNR
from genjax.diffusion.weightings import Likelihood, MinSNR

T = jnp.linspace(0.1, 0.9, 7)


def test_a_perfect_network_has_exactly_no_loss(process, x_0_and_eps):
    x_0, eps = x_0_and_eps
    loss = denoising_loss(lambda x, t: velocity(process, x_0, eps, t), process, Velocity(), x_0, eps, T)
    np.testing.assert_array_equal(loss, np.zeros(7))


def test_when_the_data_is_one_point_the_noisy_sample_and_its_time_tell_all(process, x_0_and_eps):
    point, eps = jnp.full_like(x_0_and_eps[0], 0.3), x_0_and_eps[1]

    def network(x_t, t):
        c = coefficients(process, like(t, x_t))
        return c.d_alpha * point + c.d_sigma * (x_t - c.alpha * point) / c.sigma

    np.testing.assert_allclose(denoising_loss(network, process, Velocity(), point, eps, T), np.zeros(7), atol=1e-10)


def test_a_network_that_is_off_by_a_constant_has_the_square_of_it(x_0_and_eps):
    x_0, eps = x_0_and_eps
    loss = denoising_loss(lambda x, t: eps - x_0 + like(t, x), RectifiedFlow(), Velocity(), x_0, eps, T)
    np.testing.assert_allclose(loss, T**2, rtol=1e-5)


def test_a_network_that_says_nothing_has_the_mean_square_of_each_samples_target(x_0_and_eps):
    x_0, eps = x_0_and_eps
    loss = denoising_loss(lambda x, t: jnp.zeros_like(x), RectifiedFlow(), Velocity(), x_0, eps, T)
    expected = [np.mean(np.float64(eps[i] - x_0[i]) ** 2) for i in range(7)]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_network_sees_the_noised_sample_at_its_time(x_0_and_eps):
    x_0, eps = x_0_and_eps
    seen = []
    denoising_loss(lambda *a: seen.extend(a) or a[0], RectifiedFlow(), Velocity(), x_0, eps, T)
    t = T[:, None, None]
    np.testing.assert_allclose(seen[0], (1 - t) * x_0 + t * eps, rtol=1e-6)
    np.testing.assert_array_equal(seen[1], T)


@pytest.mark.parametrize("data", [jnp.float32, jnp.bfloat16])
def test_the_loss_of_a_bfloat16_network_is_summed_in_float32(x_0_and_eps, data):
    x_0, eps = x_0_and_eps.astype(data)
    output = jnp.ones_like(x_0, jnp.bfloat16) / 3
    loss = denoising_loss(lambda x, t: output, RectifiedFlow(), Velocity(), x_0, eps, T.astype(data))
    expected = np.mean(np.square(np.float64(output) - np.float64(eps - x_0)), axis=(1, 2))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_weight_multiplies_the_loss_of_each_sample(x_0_and_eps):
    x_0, eps = x_0_and_eps

    def loss(*weighting):
        return denoising_loss(lambda x, t: jnp.sin(x), VP(), Eps(), x_0, eps, T, *weighting)

    np.testing.assert_allclose(loss(MinSNR()), MinSNR().weight(VP(), T) * loss(), rtol=1e-6)


def test_the_preconditioned_loss_is_that_of_karras(x64, x_0_and_eps):
    """Karras et al. 2022, equations 2 and 7: lambda |D(x) - y|^2 with D = c_skip x + c_out F(c_in x, c_noise)."""
    y, noise, s = *np.float64(x_0_and_eps), 0.5
    sigma = np.geomspace(0.01, 70, 7)[:, None, None]

    def network(x, t):
        return jnp.sin(3 * x) + like(t, x)

    x = y + sigma * noise
    root = np.sqrt(sigma**2 + s**2)
    denoised = s**2 / root**2 * x + sigma * s / root * network(x / root, np.log(sigma[:, 0, 0]) / 4)
    expected = ((root / (sigma * s)) ** 2 * (denoised - y) ** 2).mean(axis=(1, 2))
    loss = denoising_loss(network, EDM(), Preconditioned(s), y, noise, jnp.asarray(sigma[:, 0, 0] / 80))
    np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_importance_sampling_keeps_the_mean_of_the_likelihood_loss_and_takes_its_variance(x64):
    """The same integral over time, of an error of the size of an optimal denoiser's (Song et al. 2021, section 5)."""
    target, process, count = Gaussian((0.2,), (0.5,)), VP(), 20_000
    rng = np.random.default_rng(0)
    x_0, eps, u = 0.2 + 0.5 * rng.normal(size=(count, 1)), rng.normal(size=(count, 1)), rng.uniform(size=count)

    def network(x, t):
        return target.denoised(process, x, t).eps

    def losses(times):
        t = times.quantile(u, process)
        t = 1e-3 + (1 - 1e-3) * t if times == Uniform() else t
        return denoising_loss(network, process, Eps(), x_0, eps, t, Likelihood()), t

    (plain, _), (weighted, t) = (jax.jit(losses, static_argnums=0)(t) for t in (Uniform(), UniformLogSNR(1e-3, 1.0)))
    density = jax.jit(lambda t: UniformLogSNR(1e-3, 1.0).density(t, process))(t)
    plain, weighted = np.asarray(plain) * (1 - 1e-3), np.asarray(weighted) / density
    error = (plain.var() / count + weighted.var() / count) ** 0.5
    assert abs(plain.mean() - weighted.mean()) < 4 * error
    assert weighted.var() < plain.var() / 4


# ---------------------------------------------------------------------------------------------------- the hybrid loss


@pytest.fixture
def learned(x_0_and_eps):
    """x_0, eps, what a network says of the noise and of the variance; times at steps of a chain, the first of all."""
    x_0, eps = x_0_and_eps
    says, u = np.random.default_rng(1).normal(size=(2, *x_0.shape)).astype(np.float32)
    return np.clip(x_0, -1, 1), eps, says, np.tanh(u), np.array([1, 2, 100, 400, 700, 999, 1000]) / 1000


@functools.partial(jax.jit, static_argnames="prediction")
def loss_of(says, u, x_0, eps, t, prediction=LearnedVariance()):  # noqa: B008
    output = jnp.concatenate([says, u], axis=-1)
    return denoising_loss(lambda x, t: output, DDPM(), prediction, x_0, eps, t)


def test_the_hybrid_loss_is_the_simple_one_and_a_thousandth_of_the_bound_of_all_steps(learned, x64):
    """The KL of two Gaussians in float64, from the betas alone; its published form counts 1,000 steps times 0.001."""
    x_0, eps, says, u, t = (np.float64(a) for a in learned)
    n, beta = np.round(1000 * t).astype(int), DDPM().betas()
    kept = np.concatenate([[1], np.cumprod(1 - beta)])
    small = np.concatenate([[np.nan], beta * (1 - kept[:-1]) / (1 - kept[1:])])
    small[1] = small[2]
    column = (slice(None), None, None)
    x_t = np.sqrt(kept[n])[column] * x_0 + np.sqrt(1 - kept[n])[column] * eps
    guess = (x_t - np.sqrt(1 - kept[n])[column] * says) / np.sqrt(kept[n])[column]
    of_x_0 = np.sqrt(kept[n - 1]) * beta[n - 1] / (1 - kept[n])
    fraction = (u + 1) / 2
    log_variance = fraction * np.log(beta[n - 1])[column] + (1 - fraction) * np.log(small[n])[column]
    shift = of_x_0[column] * (x_0 - guess)
    nats = 0.5 * (log_variance - np.log(small[n])[column] - 1)
    nats += 0.5 * (small[n][column] + shift**2) / np.exp(log_variance)
    std = np.exp(log_variance[0] / 2)
    upper = np.where(x_0[0] > 0.999, 1, norm.cdf((x_0[0] + 1 / 255 - guess[0]) / std))
    lower = np.where(x_0[0] < -0.999, 0, norm.cdf((x_0[0] - 1 / 255 - guess[0]) / std))
    nats[0] = -np.log(np.maximum(upper - lower, 1e-300))
    expected = ((says - eps) ** 2).mean(axis=(1, 2)) + nats.mean(axis=(1, 2)) / np.log(2)
    loss = loss_of(says, u, x_0, eps, jnp.asarray(t))
    np.testing.assert_allclose(loss[1:], expected[1:], rtol=1e-8)
    assert (upper - lower).min() > 1e-300 or np.isfinite(loss[0])


def test_the_first_step_costs_the_log_probability_of_the_levels(learned, x64):
    x_0, eps, _, u, _ = (np.float64(a)[:1] for a in learned)
    loss = loss_of(eps, u, x_0, eps, jnp.array([0.001]))
    beta = DDPM().betas()
    small = (1 - (1 - beta[0])) / (1 - (1 - beta[0]) * (1 - beta[1])) * beta[1]
    std = np.exp(((u + 1) / 2 * np.log(beta[0]) + (1 - u) / 2 * np.log(small)) / 2)
    upper = np.where(x_0 > 0.999, 1, norm.cdf(1 / 255 / std))
    lower = np.where(x_0 < -0.999, 0, norm.cdf(-1 / 255 / std))
    np.testing.assert_allclose(loss[0], -np.log2(upper - lower).mean(), rtol=1e-8)


def test_the_bound_teaches_the_variance_and_not_the_mean(learned):
    x_0, eps, says, u, t = learned

    @jax.jit
    def slopes(says, u):
        gradients = jax.grad(lambda *said: loss_of(*said, x_0, eps, t).sum(), argnums=(0, 1))(says, u)
        simple = LearnedVariance(vlb_weight=0.0)
        return gradients, jax.grad(lambda says: loss_of(says, u, x_0, eps, t, simple).sum())(says)

    gradients, simple = slopes(says, u)
    np.testing.assert_allclose(gradients[0], simple, rtol=1e-6)
    assert (np.abs(gradients[1]).max(axis=(1, 2)) > 0).all()


def test_a_longer_or_a_heavier_chain_counts_for_more(learned):
    x_0, eps, says, u, t = learned
    loss = functools.partial(loss_of, says, u, x_0, eps, t[1:2].repeat(7))
    simple, once, twice = (loss(LearnedVariance(vlb_weight=w)) for w in (0.0, 0.001, 0.002))
    np.testing.assert_allclose(twice - simple, 2 * (once - simple), rtol=1e-4)


def test_a_step_that_would_end_nearer_to_the_data_than_half_of_one_ends_there():
    """From 1.4 steps, at the data: the cost is that of levels, a log-probability, for times drawn continuously."""
    prediction, process = LearnedVariance(), DDPM()
    x_0, eps, says = np.random.default_rng(0).normal(size=(3, 1, 2, 3)).astype(np.float32)
    u = np.zeros_like(x_0)

    @jax.jit
    def bound_and_loss(s, t):
        x_t = noised(process, x_0, eps, t)
        denoised = prediction.denoised(process, jnp.concatenate([says, u], axis=-1), x_t, t)
        simple = loss_of(says, u, x_0, eps, t, LearnedVariance(vlb_weight=0.0))
        return step_bound(process, denoised, x_0, x_t, s, t), loss_of(says, u, x_0, eps, t) - simple

    for s, t, rtol in ((0.0, 1.4e-3, 1e-4), (1.6e-3 - 1e-3, 1.6e-3, 1e-3)):
        bound, loss = bound_and_loss(jnp.full(1, s), jnp.full(1, t))
        np.testing.assert_allclose(loss, bound, rtol=rtol)
