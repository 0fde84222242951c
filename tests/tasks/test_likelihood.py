"""Laws of the likelihood of held-out images: of a network that is exact for a Gaussian, the Gaussian's own."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.stats import norm

from genjax.data import Digits, Npz
from genjax.diffusion.grids import KarrasSigmas, UniformTimes
from genjax.diffusion.likelihood import discretised_log_density
from genjax.diffusion.predictions import Preconditioned
from genjax.diffusion.process import RectifiedFlow, log_snr, prior_std
from genjax.diffusion.processes import EDM, VE, VP
from genjax.diffusion.solvers import EDMHeun, Euler
from genjax.errors import InputError
from genjax.keys import row_keys
from genjax.tasks.conditions import Label, Nothing
from genjax.tasks.denoising import Denoising, Sampler
from genjax.tasks.likelihood import likelihood_figures, noise_levels
from genjax.tasks.spaces import Latents
from tests.tasks.networks import Silent

STD = 0.7
TASK = Denoising(
    model=Silent(),
    condition=Nothing(),
    process=EDM(),
    prediction=Preconditioned(sigma_data=STD),
    sampler=Sampler(EDMHeun(), steps=4, guidance=1.0, grid=KarrasSigmas()),
    data=Digits(),
)


@functools.cache
def held_out():
    return np.stack([Digits().source("test")[i]["image"] for i in range(100)])


def exact(std=STD):
    """Bits of the levels of the held-out images under N(0, std^2)."""
    upper = np.where(held_out() > 0.99, np.inf, held_out() + 1 / 16)
    lower = np.where(held_out() < -0.99, -np.inf, held_out() - 1 / 16)
    return -np.log2(norm.cdf(upper, 0, std) - norm.cdf(lower, 0, std)).mean()


@pytest.fixture(scope="module")
def figures():
    return likelihood_figures(TASK, TASK.init(jax.random.key(0)).trained, 100, seed=3)


def by_hand(process, mean=0.0):
    """The bound of the ODE, of the same noise, where the data is N(mean, s^2), which the ODE carries in closed form.

    From the first time to the last it multiplies distances from the mean by the ratio of deviations there.
    """
    first, last = (jnp.float32(t) for t in noise_levels(process, 1 / 24, 1.0, 1))
    alpha, sigma = float(process.alpha(first)), float(process.sigma(first))
    keys = jax.vmap(lambda key: jax.random.split(key, 2)[0])(row_keys(3, jnp.arange(100)))
    eps = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(keys), np.float64)
    x_t = np.asarray(alpha * held_out() + sigma * eps, np.float64)
    ratio = float(jnp.hypot(process.alpha(last) * STD, process.sigma(last))) / np.hypot(alpha * STD, sigma)
    carried = float(process.alpha(last)) * mean + (x_t - alpha * mean) * ratio
    density = norm.logpdf(carried, 0, float(prior_std(process, last))) + np.log(ratio)
    read = np.asarray(discretised_log_density(held_out(), x_t / alpha, jnp.full((), np.log(sigma / alpha)), 17))
    return -(density + read - norm.logpdf(eps) + np.log(sigma)).mean() / np.log(2)


@pytest.mark.slow
def test_the_bound_of_the_ode_is_that_of_the_gaussian_that_the_network_is_exact_for(figures):
    """EDM's F = 0 is exact where the data is N(0, sigma_data^2)."""
    assert figures["bits_per_dim_ode"] == pytest.approx(by_hand(EDM()), abs=1e-3)
    assert figures["likelihood_images"] == 100


@pytest.mark.slow
@pytest.mark.parametrize("process", [RectifiedFlow(), VP()], ids=lambda process: type(process).__name__)
def test_it_is_so_on_paths_that_shrink_the_data(process):
    """And where the network is told inputs of unit variance, and says F = 0."""
    task = replace(TASK, process=process, sampler=Sampler(Euler(), steps=4, guidance=1.0, grid=UniformTimes(last=1e-3)))
    found = likelihood_figures(task, task.init(jax.random.key(0)).trained, 100, seed=3)
    assert found["bits_per_dim_ode"] == pytest.approx(by_hand(process), abs=1e-3)


def test_both_bounds_lie_above_the_likelihood_of_the_levels_under_the_gaussian(figures):
    assert exact() < figures["bits_per_dim_bound"] < exact() + 0.7
    assert exact() < figures["bits_per_dim_ode"]


class Told(nn.Module):
    """EDM's F of a Gaussian with deviation sigma_data around a mean that the label decides."""

    channels: int = 1

    @nn.compact
    def __call__(self, x_t, t, label):
        zero = self.param("zero", nn.initializers.zeros, ())
        sigma = jnp.exp(4 * t)[:, None, None, None]
        mean = (label / 10.0)[:, None, None, None]
        return zero * x_t + sigma / (STD * jnp.hypot(sigma, STD)) * mean * jnp.ones_like(x_t)


@pytest.mark.slow
def test_it_is_the_likelihood_of_an_image_given_what_it_shows():
    """c_skip x + c_out F is then (s^2 x + sigma^2 mean) / (s^2 + sigma^2), and the density that of the label's mean."""
    task = replace(TASK, model=Told(), condition=Label())
    found = likelihood_figures(task, task.init(jax.random.key(0)).trained, 100, seed=3)
    labels = np.array([Digits().source("test")[i]["label"] for i in range(100)]) / 10
    assert found["bits_per_dim_ode"] == pytest.approx(by_hand(EDM(), labels[:, None, None, None]), abs=1e-3)


@pytest.mark.slow
def test_the_door_tells_the_figures_of_the_function(figures):
    parts = TASK.init(jax.random.key(0))
    (told,) = replace(TASK.request("evaluate"), num=4, likelihood=100, seed=3)(TASK, parts)
    assert figures.items() <= told.values.items()


@pytest.mark.parametrize("process", [RectifiedFlow(), VE(), EDM()], ids=lambda process: type(process).__name__)
def test_times_are_even_in_log_snr_from_the_first_noise_to_the_last_time(process):
    times = noise_levels(process, 0.02, 1.0, 40)
    found = np.asarray(log_snr(process, jnp.asarray(times, jnp.float32)), np.float64)
    np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=2e-3)
    assert len(times) == 41 and found[0] == pytest.approx(-np.log(0.02), abs=1e-3)
    assert found[-1] == pytest.approx(max(-7, float(log_snr(process, jnp.float32(1.0)))), abs=1e-3)


def test_where_noise_is_larger_at_every_time_they_begin_with_the_least():
    times = noise_levels(VE(sigma_min=0.1), 0.001, 1.0, 10)
    assert 0 < times[0] < 1e-4 and (np.diff(times) > 0).all()


def test_latents_have_no_likelihood_of_pixels(tmp_path):
    np.savez(tmp_path / "any.npz", images=np.zeros((4, 8, 8, 1), np.float32), captions=np.array(["a"] * 4))
    npz = Npz(path=str(tmp_path / "any.npz"))
    asked = replace(TASK.request("evaluate"), likelihood=5)
    asked.check(TASK)
    with pytest.raises(InputError, match="--likelihood is of pixels, and the space of this run is Latents"):
        asked.check(replace(TASK, space=Latents()))
    with pytest.raises(InputError, match="--likelihood is of pixels of whole levels, and those of the data are any"):
        asked.check(replace(TASK, data=npz))
    with pytest.raises(InputError, match="--likelihood is a number of held-out images, at least 0, not -1"):
        replace(asked, likelihood=-1).check(TASK)
