"""Laws of DDIM: its noise is a share of the posterior's, and its steps are those of diffusers."""

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.predictions import Denoised
from genjax.diffusion.process import RectifiedFlow, posterior
from genjax.diffusion.processes import VE, VP
from genjax.diffusion.solvers import DDIM, integrate
from genjax.errors import InputError
from tests.diffusion.solvers import problems


@pytest.mark.parametrize("eta", [0.0, pytest.param(0.5, marks=pytest.mark.slow), 1.0])
@pytest.mark.parametrize("process", [RectifiedFlow(), VP(), VE()], ids=lambda process: type(process).__name__)
def test_the_error_falls_with_the_declared_power_of_the_step(eta, process, x64):
    assert problems.observed_order(DDIM(eta), process) == pytest.approx(1, abs=0.15)


def test_given_the_data_every_share_of_noise_has_the_marginals_of_the_process(any_process, x64, stepwise):
    """Song, Meng and Ermon 2021, lemma 1; and a share of all is the posterior."""
    t, t_next = jnp.float64(0.7), jnp.float64(0.4)
    x_0, eps = 0.3, np.linspace(-2, 2, 5)
    x = any_process.alpha(t) * x_0 + any_process.sigma(t) * eps
    units = np.eye(1, 5)
    for eta in (0.0, 0.3, 1.0):
        solver = problems.WithoutKeys(DDIM(eta), units[None, None])
        mean = integrate(
            problems.WithoutKeys(DDIM(eta), np.zeros((1, 1, 5))),
            any_process,
            lambda x, t: Denoised(jnp.full(5, x_0), eps),
            x,
            np.array([t, t_next]),
        )
        noisy = integrate(solver, any_process, lambda x, t: Denoised(jnp.full(5, x_0), eps), x, np.array([t, t_next]))
        fresh = (noisy - mean)[0]
        kept = (mean[-1] - mean[0]) / (eps[-1] - eps[0])
        np.testing.assert_allclose(fresh**2 + kept**2, any_process.sigma(t_next) ** 2, rtol=1e-9)
        np.testing.assert_allclose(fresh**2, eta**2 * posterior(any_process, t_next, t).variance, rtol=1e-9)


@pytest.mark.parametrize("eta", [-0.1, 1.01])
def test_the_share_of_noise_lies_between_none_and_all(eta):
    with pytest.raises(InputError, match=f"eta of DDIM lies in .0, 1., not at {eta}"):
        DDIM(eta)


def test_it_draws_noise_if_its_share_is_more_than_none():
    assert not DDIM().stochastic and DDIM(0.1).stochastic


def test_trajectories_equal_those_of_diffusers(golden, x64):
    runs = problems.runs_of(golden, "DDIM")
    assert runs == ["ddim", "ddim_noisy", "euler_ancestral"]
    for run in runs:
        assert problems.distance_from_golden(golden, run) < 3e-6
