"""Laws of exponential integrators: what they are exact for, orders, infinite log-SNRs, and the steps of diffusers."""

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.predictions import Denoised
from genjax.diffusion.process import RectifiedFlow, log_snr
from genjax.diffusion.processes import EDM, VP, Trigonometric
from genjax.diffusion.solvers import DDIM, DPMpp1, DPMpp2M, DPMpp3M, DPMppSDE2M, UniPC2, integrate
from genjax.diffusion.solvers.exponential import first_order
from genjax.diffusion.solvers.integrate import Step
from genjax.errors import InputError
from tests.diffusion.solvers import problems

ODE = [DPMpp1(), DPMpp2M(), DPMpp3M(), UniPC2()]
every_solver = pytest.mark.parametrize("solver", ODE, ids=lambda solver: type(solver).__name__)


@pytest.mark.parametrize("solver", [*ODE, DPMppSDE2M(), DPMppSDE2M(0.5)], ids=str)
@pytest.mark.parametrize(
    "process", [RectifiedFlow(), pytest.param(VP(), marks=pytest.mark.slow), EDM()], ids=lambda p: type(p).__name__
)
def test_the_error_falls_with_the_declared_power_of_the_step(solver, process, x64):
    assert problems.observed_order(solver, process) == pytest.approx(solver.order, abs=0.15)


def test_on_a_whole_path_the_two_step_method_is_of_second_order_but_for_a_logarithm(x64):
    """Its steps at the ends of a path do not become small in log-SNR."""
    steps = np.array([512, 1024])
    for process in (RectifiedFlow(), Trigonometric()):
        errors = [problems.whole_error(DPMpp2M(), process, np.linspace(1, 0, n + 1)) for n in steps] / np.log(steps)
        assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)
        assert errors[1] < 1e-5


@every_solver
def test_data_in_one_point_is_reached_exactly_in_any_steps(solver, process, stepwise):
    point, eps = 0.3, np.linspace(-2, 2, 5, dtype=np.float32)
    times = np.array([0.95, 0.9, 0.35, 0.3, 0.0])
    path = [process.alpha(t) * point + process.sigma(t) * eps for t in jnp.asarray(times, jnp.float32)]
    denoiser = problems.posterior_mean(process, mean=point, std=0.0)
    x = integrate(solver, process, denoiser, path[0], times, trajectory=True)
    np.testing.assert_allclose(x, np.stack(path), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_estimates_that_are_polynomials_in_the_log_snr_are_integrated_exactly_up_to_the_order(degree, x64, stepwise):
    """A solver of order n that has had its first steps is exact for degree n - 1 (Lu et al. 2022, section 4)."""
    process, times = VP(), np.array([0.9, 0.7, 0.6, 0.45, 0.4])

    def estimate(x, t):
        return log_snr(process, t)[:, None] ** degree * jnp.ones_like(x)

    def denoiser(x, t):
        x_0 = estimate(x, t)
        return Denoised(x_0, (x - process.alpha(t)[:, None] * x_0) / process.sigma(t)[:, None])

    # x / sigma grows by the integral of e^lambda x_0 d lambda
    a, b = log_snr(process, times[-2]), log_snr(process, times[-1])
    points, weights = np.polynomial.legendre.leggauss(20)
    lam = (a + b) / 2 + (b - a) / 2 * points
    gained = (b - a) / 2 * np.sum(weights * np.exp(lam) * lam**degree)
    for solver in (DPMpp1(), DPMpp2M(), DPMpp3M()):
        x = integrate(solver, process, denoiser, jnp.ones((1, 1)), times, trajectory=True)[:, 0, 0]
        wanted = process.sigma(times[-1]) * (x[-2] / process.sigma(times[-2]) + gained)
        exact = degree == 0 or solver.order > 2 and degree < 3
        assert (abs(x[-1] - wanted) < 1e-12) == exact
    # 2M is exact for a line in the limit of small steps only: its D is the line's value in the middle of the step.


def test_the_first_order_method_is_ddim_without_noise(process):
    z, times = np.linspace(-2, 2, 5, dtype=np.float32), np.array([0.9, 0.5, 0.2, 0.0])
    first, second = (
        integrate(solver, process, problems.posterior_mean(process), z, times) for solver in (DPMpp1(), DDIM())
    )
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_without_noise_the_sde_is_the_ode(process):
    z, times = np.linspace(-2, 2, 5, dtype=np.float32), np.array([1.0, 0.5, 0.2, 0.0])
    without, ode = (
        integrate(solver, process, problems.posterior_mean(process), z, times)
        for solver in (DPMppSDE2M(eta=0.0), DPMpp2M())
    )
    np.testing.assert_array_equal(without, ode)


def test_the_share_of_noise_lies_between_none_and_all():
    for eta in (-0.1, 1.1):
        with pytest.raises(InputError, match=f"eta of DPMppSDE2M lies in .0, 1., not at {eta}"):
            DPMppSDE2M(eta)


def test_a_step_for_a_known_estimate_keeps_the_noise_and_moves_the_data(process, x_0_and_eps):
    x_0, eps = x_0_and_eps
    t, t_next = jnp.float32(0.8), jnp.float32(0.3)
    x = process.alpha(t) * x_0 + process.sigma(t) * eps
    step = Step(jnp.int32(0), jnp.int32(1), t, t_next, None)
    expected = process.alpha(t_next) * x_0 + process.sigma(t_next) * eps
    np.testing.assert_allclose(first_order(process, x, x_0, step), expected, atol=1e-6)


@pytest.mark.slow
def test_trajectories_equal_those_of_diffusers(golden, x64):
    runs = problems.runs_of(golden, "DPMpp1", "DPMpp2M", "DPMpp3M", "DPMppSDE2M", "UniPC2")
    assert len(runs) == 14
    for run in runs:
        assert problems.distance_from_golden(golden, run) < 3e-6
