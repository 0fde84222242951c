"""Laws of the likelihood of held-out images: of a network that is exact for a Gaussian, the Gaussian's own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from genjax.data import Digits
from genjax.diffusion.grids import KarrasSigmas
from genjax.diffusion.likelihood import dequantised
from genjax.diffusion.predictions import Preconditioned
from genjax.diffusion.process import RectifiedFlow, log_snr
from genjax.diffusion.processes import EDM, VE
from genjax.diffusion.solvers import EDMHeun
from genjax.errors import InputError
from genjax.keys import row_keys
from genjax.tasks.conditions import Nothing
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


@pytest.fixture(scope="module")
def figures():
    return likelihood_figures(TASK, TASK.init(jax.random.key(0)).trained, 100, seed=3)


def test_the_density_of_the_ode_is_that_of_the_gaussian(figures):
    """EDM's F = 0 is exact where the data is N(0, sigma_data^2); of the same dequantised images, by hand."""
    images = jnp.stack([Digits().source("test")[i]["image"] for i in range(100)])
    spread = jax.vmap(lambda key: jax.random.split(key, 2)[0])(row_keys(3, jnp.arange(100)))
    x = dequantised(images, spread, 17)
    bits = -norm.logpdf(x, 0, STD).mean() / np.log(2) + np.log2(17 / 2)
    assert figures["bits_per_dim_ode"] == pytest.approx(bits, abs=2e-3)
    assert figures["likelihood_images"] == 100


def test_the_bound_lies_above_the_likelihood_of_the_levels_under_the_gaussian(figures):
    images = np.stack([Digits().source("test")[i]["image"] for i in range(100)])
    upper = np.where(images > 0.99, np.inf, images + 1 / 16)
    lower = np.where(images < -0.99, -np.inf, images - 1 / 16)
    exact = -np.log2(norm.cdf(upper, 0, STD) - norm.cdf(lower, 0, STD)).mean()
    assert exact < figures["bits_per_dim_bound"] < exact + 0.7


@pytest.mark.parametrize("process", [RectifiedFlow(), VE(), EDM()], ids=lambda process: type(process).__name__)
def test_times_are_even_in_log_snr_from_the_first_noise_to_the_last_time(process):
    times = noise_levels(process, 0.02, 1.0, 40)
    assert len(times) == 41 and times[-1] == 1
    steps = np.diff(np.asarray(log_snr(process, jnp.asarray(times[:-1], jnp.float32)), np.float64))
    np.testing.assert_allclose(steps, steps[0], rtol=2e-3)
    assert float(log_snr(process, jnp.float32(times[0]))) == pytest.approx(-np.log(0.02), abs=1e-3)


def test_latents_have_no_likelihood_of_pixels():
    asked = replace(TASK.request("evaluate"), likelihood=5)
    asked.check(TASK)
    with pytest.raises(InputError, match="--likelihood is of pixels, and the space of this run is Latents"):
        asked.check(replace(TASK, space=Latents()))
    with pytest.raises(InputError, match="--likelihood is a number of held-out images, at least 0, not -1"):
        replace(asked, likelihood=-1).check(TASK)
