"""Laws of weightings: each is the same for every prediction, and is what its paper says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from genjax.config.kinds import kinds
from genjax.diffusion.losses import denoising_loss
from genjax.diffusion.predictions import X0, Eps, Preconditioned, Score, V, Velocity
from genjax.diffusion.process import RectifiedFlow, log_snr, noised, sde
from genjax.diffusion.processes import EDM, VP, Trigonometric
from genjax.diffusion.targets import Gaussian
from genjax.diffusion.times import UniformLogSNR
from genjax.diffusion.weightings import (
    SNR,
    EDMWeighting,
    Likelihood,
    MinSNR,
    Sigmoid,
    Unweighted,
    Weighting,
    on_output,
)
from genjax.errors import InputError

T = np.linspace(0.05, 0.95, 7)
WEIGHTINGS = [SNR(), MinSNR(), EDMWeighting(), Likelihood(), Sigmoid()]
PREDICTIONS = [X0(), Eps(), V(), Velocity(), Score(), Preconditioned()]


@pytest.fixture(autouse=True)
def double(x64):
    """Laws of ratios, which are exact."""


def snr(process):
    return np.exp(2 * log_snr(process, T))


def test_a_config_takes_every_weighting_by_name():
    assert kinds(Weighting).keys() == {"Unweighted", "SNR", "MinSNR", "EDMWeighting", "Likelihood", "Sigmoid"}


@pytest.mark.parametrize("process", [RectifiedFlow(), VP(), EDM()], ids=lambda process: type(process).__name__)
def test_a_weighted_loss_is_the_same_whatever_the_network_predicts(process):
    """Networks that mean the same (x_0, eps) in other words have the same loss, by every weighting."""
    x_0, eps, wrong = np.random.default_rng(0).normal(size=(3, 7, 4))
    x_0, eps, wrong, t = map(jnp.asarray, (x_0, eps, wrong, T))
    x_t = noised(process, x_0, eps, t)
    implied = (x_t - process.alpha(t)[:, None] * wrong) / process.sigma(t)[:, None]

    def loss(prediction, weighting):
        output = prediction.target(process, wrong, implied, t)
        return denoising_loss(lambda x, t: output, process, prediction, x_0, eps, t, weighting)

    for weighting in WEIGHTINGS:
        of_each = np.stack([loss(prediction, weighting) for prediction in PREDICTIONS])
        np.testing.assert_allclose(of_each, np.broadcast_to(of_each[0], of_each.shape), rtol=1e-7)


def test_snr_on_x_0_is_1_on_eps_and_the_published_weights_on_the_others():
    process = Trigonometric()
    np.testing.assert_allclose(on_output(SNR(), process, X0(), T), snr(process), rtol=1e-12)
    np.testing.assert_allclose(on_output(SNR(), process, Eps(), T), 1, rtol=1e-12)
    np.testing.assert_allclose(on_output(SNR(), process, Score(), T), process.sigma(T) ** 2, rtol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("process", [VP(), Trigonometric()], ids=str)
def test_min_snr_is_the_published_one_for_x_0_eps_and_v(process, gamma):
    """Hang et al. 2023, section 3.4."""
    least = np.minimum(snr(process), gamma)
    weights = {X0(): least, Eps(): least / snr(process), V(): least / (snr(process) + 1)}
    for prediction, expected in weights.items():
        np.testing.assert_allclose(on_output(MinSNR(gamma), process, prediction, T), expected, rtol=1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_weighting_is_1_on_its_own_prediction_under_any_process(any_process, sigma_data):
    weight = on_output(EDMWeighting(sigma_data), any_process, Preconditioned(sigma_data), T)
    np.testing.assert_allclose(weight, 1, rtol=1e-9)


def test_edm_weighting_is_equation_8_of_karras_on_x_0():
    sigma, s = 80 * T, 0.5
    expected = (sigma**2 + s**2) / (sigma * s) ** 2
    np.testing.assert_allclose(on_output(EDMWeighting(), EDM(), X0(), T), expected, rtol=1e-12)


def test_the_likelihood_weight_is_half_the_squared_diffusion_on_the_score(any_process):
    g2 = sde(any_process, T).squared_diffusion
    np.testing.assert_allclose(on_output(Likelihood(), any_process, Score(), T), g2 / 2, rtol=1e-9)


@pytest.mark.parametrize("weighting", [Likelihood(), Sigmoid(-2.0)], ids=str)
def test_weightings_of_log_snr_have_one_integral_whatever_the_process(weighting):
    """Of an error that depends on the log-SNR alone, between two log-SNRs."""

    def integral(process, ends):
        points, weights = np.polynomial.legendre.leggauss(200)
        low, high = ends
        t = (low + high) / 2 + (high - low) / 2 * points
        error = expit(log_snr(process, t))
        return (weights * weighting.weight(process, t) * error).sum() * (high - low) / 2

    circle = np.array([0.1, 0.8])
    ends = log_snr(Trigonometric(), circle)
    linear = np.exp(-ends) / 80
    np.testing.assert_allclose(integral(EDM(), linear), integral(Trigonometric(), circle), rtol=1e-8)


def test_sigmoid_is_half_of_the_likelihood_at_its_bias_and_all_of_it_far_below(any_process):
    ratio = Sigmoid(-1.0).weight(any_process, T) / Likelihood().weight(any_process, T)
    np.testing.assert_allclose(ratio, expit(-1 - 2 * log_snr(any_process, T)), rtol=1e-9)


def test_sigmoid_is_that_of_hoogeboom_on_x_0():
    """Simpler Diffusion (2024): -1/2 d(log SNR)/dt e^bias sigmoid(log SNR - bias) on x_0."""
    process, bias = Trigonometric(), -3.0
    slope = jax.vmap(jax.grad(lambda t: 2 * log_snr(process, t)))(T)
    expected = -slope / 2 * np.exp(bias) * expit(2 * log_snr(process, T) - bias)
    np.testing.assert_allclose(on_output(Sigmoid(bias), process, X0(), T), expected, rtol=1e-9)


def test_unweighted_is_1_on_whatever_the_network_says(process):
    for prediction in PREDICTIONS:
        np.testing.assert_array_equal(on_output(Unweighted(), process, prediction, T), 1)


@pytest.mark.slow
def test_weights_are_finite_in_single_precision_at_every_time_that_can_be_drawn(process):
    t = jnp.asarray([2.0**-24, 1e-3, 0.5, 1 - 2.0**-24], jnp.float32)
    for weighting, prediction in itertools.product(WEIGHTINGS, [X0(), Eps(), V(), Velocity(), Preconditioned()]):
        assert np.isfinite(on_output(weighting, process, prediction, t)).all()


@pytest.mark.parametrize(("kind", "name"), [(MinSNR, "gamma of MinSNR"), (EDMWeighting, "sigma_data of EDMWeighting")])
def test_what_is_no_weighting_is_refused(kind, name):
    with pytest.raises(InputError, match=f"{name} is positive, not 0.0"):
        kind(0.0)


@pytest.mark.parametrize("process", [RectifiedFlow(), VP(), EDM()], ids=lambda process: type(process).__name__)
def test_on_times_of_uniform_log_snr_the_mean_loss_of_snr_is_the_bound_over_the_range_of_log_snr(process):
    """Both means by the midpoint rule, of the loss of the best denoiser of a Gaussian; the factor counts once."""
    start, end = 0.02, 0.95
    times, target = UniformLogSNR(start, end), Gaussian((0.2,), (0.5,))
    x_0, eps = np.full((20_000, 1), 0.9), np.full((20_000, 1), -0.7)
    u = (np.arange(20_000) + 0.5) / 20_000

    def network(x, t):
        return target.denoised(process, x, t).eps

    @jax.jit
    def means(u):
        drawn, even = times.quantile(u, process), start + (end - start) * u
        losses = (
            denoising_loss(network, process, Eps(), x_0, eps, t, weighting)
            for t, weighting in ((drawn, SNR()), (even, Likelihood()), (drawn, Likelihood()))
        )
        return [loss.mean() for loss in losses]

    snr_mean, likelihood, twice = means(u)
    bound = likelihood * (end - start)
    span = np.diff(log_snr(process, jnp.array([end, start])))[0]
    np.testing.assert_allclose(snr_mean * span, bound, rtol=1e-4)
    assert abs(twice * span / bound - 1) > 0.5
