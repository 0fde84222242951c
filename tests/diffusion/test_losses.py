"""Laws of the denoising loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.losses import denoising_loss
from genjax.diffusion.predictions import Eps, Preconditioned, Velocity
from genjax.diffusion.process import RectifiedFlow, coefficients, like, velocity
from genjax.diffusion.processes import EDM, VP
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
