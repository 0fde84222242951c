"""Laws of predictions: what a network says, and the (x_0, eps) it stands for, determine each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config.kinds import kinds
from genjax.diffusion.predictions import (
    X0,
    Denoised,
    Eps,
    Preconditioned,
    Prediction,
    Score,
    V,
    Velocity,
    hub_slopes,
    step_log_variance,
)
from genjax.diffusion.process import (
    RectifiedFlow,
    coefficients,
    log_snr,
    noised,
    posterior,
    transition,
    velocity,
)
from genjax.diffusion.processes import DDPM, EDM, VE, VP, Trigonometric
from genjax.errors import InputError

T = jnp.linspace(0.02, 0.98, 7)
PREDICTIONS = [X0(), Eps(), Score(), V(), Velocity(), Preconditioned(), Preconditioned(sigma_data=1.7)]

every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)


def test_a_config_takes_every_prediction_by_name():
    names = {"X0", "Eps", "Score", "V", "Velocity", "Preconditioned", "LearnedVariance", "MeanVelocity"}
    assert kinds(Prediction).keys() == names


def test_conversions_between_all_predictions_are_identities(any_process, x64, x_0_and_eps):
    """From each to each, by way of the hub: what the second network would say is what it should say."""
    x_0, eps, t = (jnp.float64(a) for a in (*x_0_and_eps, T))
    # Operation by operation: processes and predictions are made of the same ones, and a whole program takes long.
    x_t = noised(any_process, x_0, eps, t)
    targets = [prediction.target(any_process, x_0, eps, t) for prediction in PREDICTIONS]
    hubs = [p.denoised(any_process, target, x_t, t)[:2] for p, target in zip(PREDICTIONS, targets, strict=True)]
    hubs = [np.stack(hub) for hub in zip(*hubs, strict=True)]
    converted = [np.stack([p.target(any_process, *hub, t) for hub in zip(*hubs, strict=True)]) for p in PREDICTIONS]
    np.testing.assert_allclose(hubs[0], np.broadcast_to(x_0, hubs[0].shape), atol=1e-9)
    np.testing.assert_allclose(hubs[1], np.broadcast_to(eps, hubs[1].shape), atol=1e-9)
    for expected, from_each in zip(targets, converted, strict=True):
        scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(from_each / scale, np.broadcast_to(expected / scale, from_each.shape), atol=1e-9)


@every_prediction
def test_the_target_stands_for_the_x_0_and_eps_it_was_made_of(prediction, process, x_0_and_eps):
    x_0, eps = x_0_and_eps
    t = T if prediction != Eps() else jnp.linspace(0.02, 0.8, 7)  # its x_0 is divided by an alpha that vanishes
    x_t, target = noised(process, x_0, eps, t), prediction.target(process, x_0, eps, t)
    denoised = prediction.denoised(process, target, x_t, t)
    np.testing.assert_allclose(denoised.x_0, x_0, atol=1e-5)
    np.testing.assert_allclose(denoised.eps, eps, atol=1e-4)


@every_prediction
def test_whatever_the_network_says_its_x_0_and_eps_make_up_x_t_and_its_output(prediction, process, x_0_and_eps):
    x_t, output = x_0_and_eps
    x_0, eps, _ = prediction.denoised(process, output, x_t, T)
    np.testing.assert_allclose(noised(process, x_0, eps, T), x_t, atol=1e-5)
    np.testing.assert_allclose(prediction.target(process, x_0, eps, T), output, atol=2e-4)


def test_velocity_of_a_rectified_flow_is_noise_minus_data(x_0_and_eps):
    x_0, eps = x_0_and_eps
    np.testing.assert_array_equal(Velocity().target(RectifiedFlow(), x_0, eps, T), eps - x_0)


def test_a_rectified_flow_denoises_along_its_straight_line(x_0_and_eps):
    x_t, v = x_0_and_eps
    t = T[:, None, None]
    denoised = Velocity().denoised(RectifiedFlow(), v, x_t, T)
    np.testing.assert_allclose(denoised.x_0, x_t - t * v, atol=1e-6)
    np.testing.assert_allclose(denoised.eps, x_t + (1 - t) * v, atol=1e-6)


@pytest.mark.parametrize("prediction", [V(), Velocity(), Preconditioned()], ids=str)
def test_three_predictions_are_defined_at_both_ends_of_the_path(prediction, process, x_0_and_eps):
    x_0, eps = x_0_and_eps
    t = jnp.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    output = prediction.target(process, x_0, eps, t)
    denoised = prediction.denoised(process, output, noised(process, x_0, eps, t), t)
    np.testing.assert_allclose(denoised.x_0, x_0, atol=1e-5)
    np.testing.assert_allclose(denoised.eps, eps, atol=1e-5)


def test_on_a_circle_v_is_the_velocity_up_to_its_pace(x_0_and_eps):
    """Salimans and Ho 2022, appendix D: v = dx / dphi, and phi = pi t / 2."""
    x_0, eps = x_0_and_eps
    v = V().target(Trigonometric(), x_0, eps, T)
    np.testing.assert_allclose(velocity(Trigonometric(), x_0, eps, T), np.pi / 2 * v, atol=1e-5)


def test_the_score_is_the_gradient_of_the_density_of_the_noised_sample(x64, x_0_and_eps):
    x_0, eps, t = (np.float64(a) for a in (*x_0_and_eps, T))

    def log_density(x_t):
        alpha, sigma = VP().alpha(t)[:, None, None], VP().sigma(t)[:, None, None]
        return -(((x_t - alpha * x_0) / sigma) ** 2).sum() / 2

    score = jax.grad(log_density)(noised(VP(), x_0, eps, t))
    np.testing.assert_allclose(Score().target(VP(), x_0, eps, t), score, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------------------------ what it sees


@pytest.mark.parametrize("prediction", [X0(), Eps(), V(), Velocity(), Score()], ids=str)
def test_a_plain_prediction_sees_x_t_and_t_as_they_are(prediction, x_0_and_eps):
    x_t, _ = x_0_and_eps
    seen = prediction.inputs(VE(), x_t, T)
    np.testing.assert_array_equal(seen.x, x_t)
    np.testing.assert_array_equal(seen.t, T)


def test_unit_inputs_have_unit_variance_for_data_of_unit_variance(any_process):
    x_0, eps = np.random.default_rng(0).normal(size=(2, 7, 20_000)).astype(np.float32)
    seen = Eps(unit_inputs=True).inputs(any_process, noised(any_process, x_0, eps, T), T)
    np.testing.assert_allclose(np.var(seen.x, axis=1), 1, atol=0.05)


def test_a_network_may_count_the_steps_of_a_chain_from_zero():
    seen = Eps(time_offset=-1 / 1000).inputs(DDPM(), jnp.zeros((3, 1)), jnp.array([0.001, 0.5, 1.0]))
    np.testing.assert_allclose(1000 * seen.t, [0, 499, 999], atol=1e-4)


# ---------------------------------------------------------------------------------------------- EDM's preconditioning

SIGMA = np.array([0.002, 0.1, 0.5, 1.0, 7.0, 40.0, 80.0])


def test_preconditioning_is_table_1_of_karras(x64, x_0_and_eps):
    sigma, s = SIGMA[:, None, None], 0.5
    x, output, t = *np.float64(x_0_and_eps), SIGMA / 80
    seen = Preconditioned().inputs(EDM(), x, t)
    np.testing.assert_allclose(seen.x, x / np.sqrt(sigma**2 + s**2), rtol=1e-12)
    np.testing.assert_allclose(seen.t, np.log(SIGMA) / 4, rtol=1e-9)
    c_skip, c_out = s**2 / (sigma**2 + s**2), sigma * s / np.sqrt(sigma**2 + s**2)
    denoised = Preconditioned().denoised(EDM(), output, x, t)
    np.testing.assert_allclose(denoised.x_0, c_skip * x + c_out * output, rtol=1e-9)
    np.testing.assert_allclose(denoised.eps, (x - denoised.x_0) / sigma, rtol=1e-6, atol=1e-9)


def test_preconditioned_inputs_and_targets_have_unit_variance_under_any_process(any_process, sigma_data=0.5):
    x_0, eps = np.random.default_rng(0).normal(size=(2, 7, 20_000)).astype(np.float32)
    x_0 = sigma_data * x_0
    prediction = Preconditioned(sigma_data)
    seen = prediction.inputs(any_process, noised(any_process, x_0, eps, T), T)
    np.testing.assert_allclose(np.var(seen.x, axis=1), 1, atol=0.05)
    np.testing.assert_allclose(np.var(prediction.target(any_process, x_0, eps, T), axis=1), 1, atol=0.05)


def test_preconditioning_sees_a_process_as_data_with_noise(x64, x_0_and_eps):
    """x_t / alpha is the data with noise sigma / alpha: what EDM's own process shows at that noise."""
    x_0, eps, t = (np.float64(a) for a in (*x_0_and_eps, T))
    c = coefficients(VP(), t)
    same = c.sigma / c.alpha / 80
    mine, theirs = Preconditioned().inputs(VP(), noised(VP(), x_0, eps, t), t), None
    theirs = Preconditioned().inputs(EDM(), noised(EDM(), x_0, eps, same), same)
    np.testing.assert_allclose(mine.x, theirs.x, rtol=1e-9)
    np.testing.assert_allclose(mine.t, theirs.t, rtol=1e-9)
    targets = [Preconditioned().target(p, x_0, eps, time) for p, time in ((VP(), t), (EDM(), same))]
    np.testing.assert_allclose(*targets, rtol=1e-9, atol=1e-12)


def test_preconditioned_inputs_are_finite_at_both_ends_of_a_path(any_process):
    seen = Preconditioned().inputs(any_process, jnp.ones((7, 2, 3)), jnp.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]))
    assert np.isfinite(seen.x).all() and np.isfinite(seen.t).all()
    assert (np.abs(seen.t) <= 5).all()


def test_for_unit_data_on_a_circle_the_preconditioned_target_is_minus_v(x_0_and_eps):
    x_0, eps = x_0_and_eps
    target = Preconditioned(sigma_data=1.0).target(Trigonometric(), x_0, eps, T)
    np.testing.assert_allclose(target, -V().target(Trigonometric(), x_0, eps, T), atol=1e-6)


# ------------------------------------------------------------------------------------------------ variance of a step


def test_the_variance_of_a_step_lies_between_the_posteriors_and_the_transitions(x64):
    s, t = jnp.array([0.001, 0.3, 0.998]), jnp.array([0.002, 0.301, 0.999])
    lower, upper = (step_log_variance(DDPM(), fraction, s, t) for fraction in (0.0, 1.0))
    np.testing.assert_allclose(np.exp(upper), DDPM().betas()[[1, 300, 998]], rtol=1e-7)
    np.testing.assert_allclose(np.exp(lower), posterior(DDPM(), s, t).variance, rtol=1e-12)
    np.testing.assert_allclose(step_log_variance(DDPM(), 0.25, s, t), 0.75 * lower + 0.25 * upper, rtol=1e-12)


def test_the_step_to_the_data_takes_the_posterior_variance_of_the_one_before(x64):
    s, t = jnp.array([0.0, 0.001]), jnp.array([0.001, 0.002])
    lower = step_log_variance(DDPM(), 0.0, s, t)
    np.testing.assert_allclose(lower[0], lower[1], rtol=1e-9)
    upper = step_log_variance(DDPM(), 1.0, s, t)
    np.testing.assert_allclose(upper, jnp.log(transition(DDPM(), s, t).variance), rtol=1e-12)


# ------------------------------------------------------------------------------------------------------------- slopes


@every_prediction
def test_the_slopes_of_the_hub_are_those_of_a_small_change(prediction, process, x64, x_0_and_eps):
    x_t, output, t = (np.float64(a) for a in (*x_0_and_eps, T))
    before = prediction.denoised(process, output, x_t, t)
    after = prediction.denoised(process, output + 1, x_t, t)
    for slope, one, other in zip(hub_slopes(process, prediction, t), before[:2], after[:2], strict=True):
        np.testing.assert_allclose((other - one)[:, 0, 0], slope, rtol=1e-6, atol=1e-9)


def test_an_error_of_eps_is_one_of_x_0_times_the_root_of_the_snr(any_process, x64):
    x_0, eps = hub_slopes(any_process, Velocity(), jnp.float64(T))
    np.testing.assert_allclose(np.abs(eps / x_0), np.exp(log_snr(any_process, jnp.float64(T))), rtol=1e-7)


def test_a_denoised_pair_has_no_learned_variance_unless_told():
    assert Denoised(1, 2).variance_fraction is None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (functools.partial(Preconditioned, 0.0), "sigma_data of Preconditioned is positive, not 0.0"),
    ],
)
def test_what_is_no_prediction_is_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
