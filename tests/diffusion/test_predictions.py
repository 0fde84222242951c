"""Laws of predictions: what a network says, and the (x_0, eps) it stands for, determine each other."""

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.predictions import Velocity
from genjax.diffusion.process import RectifiedFlow, noised, velocity

T = jnp.linspace(0.02, 0.98, 7)


@pytest.mark.parametrize("prediction", [Velocity()])
def test_the_target_stands_for_the_x_0_and_eps_it_was_made_of(prediction, process, x_0_and_eps):
    x_0, eps = x_0_and_eps
    x_t, target = noised(process, x_0, eps, T), prediction.target(process, x_0, eps, T)
    denoised = prediction.denoised(process, target, x_t, T)
    np.testing.assert_allclose(denoised.x_0, x_0, atol=1e-5)
    np.testing.assert_allclose(denoised.eps, eps, atol=1e-5)


@pytest.mark.parametrize("prediction", [Velocity()])
def test_whatever_the_network_says_its_x_0_and_eps_make_up_x_t_and_its_output(prediction, process, x_0_and_eps):
    x_t, output = x_0_and_eps
    denoised = prediction.denoised(process, output, x_t, T)
    np.testing.assert_allclose(noised(process, *denoised, T), x_t, atol=1e-5)
    np.testing.assert_allclose(prediction.target(process, *denoised, T), output, atol=1e-5)


def test_velocity_of_a_rectified_flow_is_noise_minus_data(x_0_and_eps):
    x_0, eps = x_0_and_eps
    np.testing.assert_array_equal(Velocity().target(RectifiedFlow(), x_0, eps, T), eps - x_0)


def test_a_rectified_flow_denoises_along_its_straight_line(x_0_and_eps):
    x_t, v = x_0_and_eps
    t = T[:, None, None]
    denoised = Velocity().denoised(RectifiedFlow(), v, x_t, T)
    np.testing.assert_allclose(denoised.x_0, x_t - t * v, atol=1e-6)
    np.testing.assert_allclose(denoised.eps, x_t + (1 - t) * v, atol=1e-6)


def test_velocity_is_defined_at_both_ends_of_the_path(process, x_0_and_eps):
    x_0, eps = x_0_and_eps
    t = jnp.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    denoised = Velocity().denoised(process, velocity(process, x_0, eps, t), noised(process, x_0, eps, t), t)
    np.testing.assert_allclose(denoised.x_0, x_0, atol=1e-5)
    np.testing.assert_allclose(denoised.eps, eps, atol=1e-5)
