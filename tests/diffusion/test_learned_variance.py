"""Laws of networks that learn a variance, and of the hybrid loss that teaches it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from genjax.diffusion.learned_variance import LearnedVariance
from genjax.diffusion.likelihood import step_bound
from genjax.diffusion.losses import denoising_loss
from genjax.diffusion.mean_velocity import MeanVelocity
from genjax.diffusion.predictions import Eps, V
from genjax.diffusion.process import noised
from genjax.diffusion.processes import DDPM, VP
from genjax.errors import InputError

T = jnp.linspace(0.02, 0.98, 7)


def test_half_the_channels_of_a_learned_variance_are_its_prediction(x_0_and_eps):
    x_t, output = x_0_and_eps
    u = jnp.broadcast_to(jnp.array([-1.0, 0.0, 1.0]), output.shape)
    denoised = LearnedVariance(V()).denoised(VP(), jnp.concatenate([output, u], -1), x_t, T)
    expected = V().denoised(VP(), output, x_t, T)
    np.testing.assert_array_equal(denoised.x_0, expected.x_0)
    np.testing.assert_array_equal(denoised.eps, expected.eps)
    np.testing.assert_array_equal(denoised.variance_fraction, np.broadcast_to([0, 0.5, 1], output.shape))


def test_the_network_sees_what_that_of_its_mean_sees(x_0_and_eps):
    mean = Eps(time_offset=-1 / 1000, unit_inputs=True)
    for seen, expected in zip(*(p.inputs(VP(), x_0_and_eps[0], T) for p in (LearnedVariance(mean), mean)), strict=True):
        np.testing.assert_array_equal(seen, expected)


def test_a_network_without_channels_for_its_variance_is_refused():
    with pytest.raises(InputError, match="says 6 channels about 3, not 3"):
        LearnedVariance().denoised(DDPM(), jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones(2))


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


@pytest.mark.slow
def test_a_longer_or_a_heavier_chain_counts_for_more(learned):
    x_0, eps, says, u, t = learned
    loss = functools.partial(loss_of, says, u, x_0, eps, t[1:2].repeat(7))
    simple, once, twice = (loss(LearnedVariance(vlb_weight=w)) for w in (0.0, 0.001, 0.002))
    np.testing.assert_allclose(twice - simple, 2 * (once - simple), rtol=1e-4)


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"vlb_weight": -1.0}, "vlb_weight of LearnedVariance is 0 or more, not -1.0"),
        ({"steps": 1}, "steps of LearnedVariance is at least 2, not 1"),
        ({"mean": MeanVelocity()}, "mean of LearnedVariance is learned by its squared error, and MeanVelocity has"),
        ({"levels": 1}, "levels of LearnedVariance is at least 2, not 1"),
    ],
)
def test_what_is_no_learned_variance_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        LearnedVariance(**fields)
