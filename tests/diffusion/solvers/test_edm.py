"""Laws of EDM's sampler: second order in sigma / alpha, churn that leaves the density, the steps of diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.grids import KarrasSigmas
from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.processes import EDM, VE, VP
from genjax.diffusion.solvers import EDMHeun, Heun, integrate
from genjax.errors import InputError
from genjax.keys import row_keys
from tests.diffusion.solvers import problems


@pytest.mark.parametrize("process", [RectifiedFlow(), VP(), VE()], ids=lambda process: type(process).__name__)
def test_the_error_falls_with_the_declared_power_of_the_step(process, x64):
    assert problems.observed_order(EDMHeun(), process) == pytest.approx(2, abs=0.15)


def test_in_the_time_of_edm_it_is_heun(x64):
    z, times = np.linspace(-2, 2, 5), np.array([0.02, 0.01, 0.004, 0.001])
    first, second = (
        integrate(solver, EDM(), problems.posterior_mean(EDM()), z, times) for solver in (EDMHeun(), Heun())
    )
    np.testing.assert_allclose(first, second, rtol=1e-12)


def test_the_step_to_data_is_one_of_euler_and_finite():
    def denoiser(x, t):
        denoised = problems.posterior_mean(VP())(x, t)
        return denoised._replace(eps=jnp.where(t > 0, denoised.eps, jnp.nan))  # as of a network that predicts the data

    x = jnp.linspace(-2, 2, 5)
    sample = integrate(EDMHeun(), VP(), denoiser, x, np.array([0.5, 0.0]))
    half = jnp.full(5, 0.5)
    np.testing.assert_allclose(sample, denoiser(x, half).x_0, atol=1e-5)


def test_churned_samples_have_the_mean_and_variance_of_the_data():
    process, times, count = VP(), KarrasSigmas(s_min=0.01, s_max=5.0).grid(VP(), 64), 5_000
    z = jax.random.normal(jax.random.key(0), (count,))
    x = jax.jit(
        lambda z: integrate(
            EDMHeun(churn=10.0, churn_min=0.05, churn_max=5.0),
            process,
            problems.posterior_mean(process),
            problems.solution(process, z, times[0]),
            times,
            keys=row_keys(1, jnp.arange(count)),
        )
    )(z)
    assert float(jnp.corrcoef(x, z)[0, 1]) < 0.95  # what it starts from is partly forgotten
    np.testing.assert_allclose(x.mean(), problems.MEAN, atol=4 * problems.STD / np.sqrt(count))
    np.testing.assert_allclose(x.std(), problems.STD, rtol=4 / np.sqrt(2 * count))


@pytest.mark.parametrize("process", [VP(), EDM(), VE()], ids=lambda process: type(process).__name__)
def test_outside_its_range_of_noise_churn_does_nothing_at_all(process):
    """To the last digit of float32, in which the time of a noise level is not found again exactly."""
    z, times = np.linspace(-2, 2, 5, dtype=np.float32), np.linspace(1, 0.01, 12)
    plain, churned = (
        integrate(solver, process, problems.posterior_mean(process), z, times, keys=row_keys(0, jnp.arange(5)))
        for solver in (EDMHeun(), EDMHeun(churn=30.0, churn_min=1e6))
    )
    np.testing.assert_allclose(churned, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_no_step_is_churned_by_more_than_the_root_of_two():
    """Karras et al. 2022, algorithm 2: of any churn, the network sees at most sqrt(2) times the noise."""
    seen = []

    def denoiser(x, t):
        seen.append(float(t[0]))
        return problems.posterior_mean(EDM())(x, t)

    with jax.disable_jit():
        integrate(
            EDMHeun(churn=1e3), EDM(), denoiser, jnp.ones(2), np.array([0.4, 0.1]), keys=row_keys(0, jnp.arange(2))
        )
    np.testing.assert_allclose(seen[0], 0.4 * np.sqrt(2), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"churn": -1.0}, "churn of EDMHeun is at least 0, not -1.0"),
        ({"churn_min": 2.0, "churn_max": 1.0}, "not 2.0 and 1.0"),
        ({"churn_noise": 0.0}, "churn_noise of EDMHeun is positive"),
    ],
)
def test_senseless_churn_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        EDMHeun(**options)


def test_trajectories_equal_those_of_diffusers(golden, x64):
    runs = problems.runs_of(golden, "EDMHeun")
    assert runs == ["heun_ve", "edm_heun_churned"]
    for run in runs:
        assert problems.distance_from_golden(golden, run) < 1e-6
