"""Laws of noise processes."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax.diffusion.process import RectifiedFlow, coefficients, like, log_snr, noised, velocity

T = jnp.linspace(0.05, 0.95, 7)


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


def test_log_snr_decreases_and_is_infinite_at_the_ends_of_a_path(process):
    assert (np.diff(log_snr(process, T)) < 0).all()
    assert log_snr(process, jnp.zeros(())) == np.inf
    assert log_snr(RectifiedFlow(), jnp.ones(())) == -np.inf


def test_times_take_the_axes_of_what_they_meet():
    assert like(jnp.zeros(3), jnp.zeros((3, 4, 5))).shape == (3, 1, 1)
    assert like(jnp.zeros(()), jnp.zeros((3, 4))).shape == (1, 1)
