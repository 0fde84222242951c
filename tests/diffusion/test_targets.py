"""Laws of analytic targets: densities that integrate, scores that are gradients, denoisers that are posterior means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from genjax.diffusion.process import RectifiedFlow, noised, velocity
from genjax.diffusion.processes import VP
from genjax.diffusion.targets import Gaussian, Mixture
from genjax.errors import InputError
from genjax.keys import row_keys

TARGETS = [Gaussian(), Mixture()]
T = np.linspace(0.1, 0.9, 7)
X = np.random.default_rng(0).normal(size=(7, 2))

every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: type(target).__name__)


@every_target
def test_the_score_is_the_gradient_of_the_log_density(target, any_process, x64):
    gradient = jax.jit(jax.grad(lambda x: target.log_density(any_process, x, T).sum()))(X)
    np.testing.assert_allclose(target.score(any_process, jnp.asarray(X), T), gradient, rtol=1e-8, atol=1e-10)


@every_target
def test_the_denoised_pair_makes_up_x_t_and_its_noise_is_the_score(target, any_process, x64):
    """Tweedie's formula: E[eps | x_t] = -sigma score."""
    x_0, eps, _ = target.denoised(any_process, jnp.asarray(X), T)
    np.testing.assert_allclose(noised(any_process, x_0, eps, T), X, rtol=1e-8, atol=1e-10)
    score = target.score(any_process, jnp.asarray(X), T)
    np.testing.assert_allclose(eps, -any_process.sigma(T)[:, None] * score, rtol=1e-8, atol=1e-10)


@every_target
def test_the_density_of_noised_data_is_that_of_its_samples(target, x64):
    """Its Fourier transform, at a few frequencies, is the mean of theirs."""
    process, t, count = VP(), 0.4, 40_000
    x_0 = np.asarray(jax.jit(target.sample)(row_keys(0, jnp.arange(count))))
    x_t = noised(process, x_0, np.random.default_rng(0).normal(size=x_0.shape), jnp.full(count, t))
    axis = np.linspace(-8, 8, 161)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    log_density = jax.jit(lambda x: target.log_density(process, x, jnp.full(len(x), t)))(grid)
    density = np.exp(log_density) * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(density.sum(), 1, rtol=1e-10)
    for frequency in ([1.0, 0.0], [0.5, -1.0], [0.3, 2.0]):
        ours, theirs = (density * np.exp(1j * grid @ frequency)).sum(), np.exp(1j * x_t @ np.array(frequency)).mean()
        assert abs(ours - theirs) < 4 / count**0.5


@every_target
def test_samples_have_the_mean_and_the_covariance_of_the_target(target):
    x = np.float64(jax.jit(target.sample)(row_keys(0, jnp.arange(40_000))))
    np.testing.assert_allclose(x.mean(axis=0), target.mean(), atol=0.03)
    np.testing.assert_allclose(np.cov(x.T), target.covariance(), atol=0.03)


def test_a_mixture_of_one_is_a_gaussian(any_process, x64):
    mixture, gaussian = Mixture(((0.5, -0.3),), (0.4,), (1.0,)), Gaussian((0.5, -0.3), (0.4, 0.4))
    x = jnp.asarray(X)
    np.testing.assert_allclose(mixture.score(any_process, x, T), gaussian.score(any_process, x, T), rtol=1e-10)
    for method in ("log_density", "denoised"):
        ours, theirs = (getattr(target, method)(any_process, x, T) for target in (mixture, gaussian))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), ours, theirs)
    np.testing.assert_allclose(mixture.covariance(), gaussian.covariance())


def test_the_density_of_a_gaussian_is_scipys(x64):
    expected = multivariate_normal([0.5, -0.3], [0.4**2, 0.7**2]).logpdf(X)
    np.testing.assert_allclose(Gaussian().log_density(RectifiedFlow(), jnp.asarray(X), np.zeros(7)), expected)


def test_a_gaussian_is_carried_along_its_velocity(any_process, x64):
    x, t = jnp.asarray(X), jnp.asarray(T)
    path = functools.partial(Gaussian().carried, any_process, x, t)
    _, slope = jax.jvp(path, (t,), (jnp.ones_like(t),))
    denoised = Gaussian().denoised(any_process, x, t)
    np.testing.assert_allclose(slope, velocity(any_process, *denoised[:2], t), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(Gaussian().carried(any_process, path(t / 2), t / 2, t), X, rtol=1e-9)


def test_the_data_of_a_point_is_the_point(x64):
    x_0, _, _ = Gaussian((0.3, 0.1), (0.0, 0.0)).denoised(VP(), jnp.asarray(X), T)
    np.testing.assert_allclose(x_0, np.broadcast_to([0.3, 0.1], X.shape))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Gaussian((1.0,), (1.0, 2.0)), "not 1 and 2"),
        (lambda: Gaussian((1.0,), (-1.0,)), "stds of Gaussian are 0 or more"),
        (lambda: Mixture(((1.0,),), (1.0,), (0.5, 0.5)), "not 1, 1 and 2"),
        (lambda: Mixture(((1.0,), (1.0, 2.0)), (1.0, 1.0), (0.5, 0.5)), "as many dimensions each"),
        (lambda: Mixture(((1.0,),), (-1.0,), (1.0,)), "stds of Mixture are 0 or more"),
        (lambda: Mixture(((1.0,),), (1.0,), (0.9,)), "positive and sum to 1"),
    ],
)
def test_what_is_no_target_is_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
