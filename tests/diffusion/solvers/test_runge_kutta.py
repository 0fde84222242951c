"""Laws of Runge-Kutta methods: straight lines, orders on whole paths, and the steps of diffusers."""

import numpy as np
import pytest

from genjax.diffusion.predictions import Denoised
from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.processes import VE, VP, SubVP, Trigonometric
from genjax.diffusion.solvers import RK4, Euler, Heun, integrate
from tests.diffusion.solvers import problems

every_solver = pytest.mark.parametrize("solver", [Euler(), Heun(), RK4()], ids=lambda solver: type(solver).__name__)


@every_solver
@pytest.mark.parametrize(
    "process", [RectifiedFlow(), pytest.param(VP(), marks=pytest.mark.slow), VE()], ids=lambda p: type(p).__name__
)
def test_the_error_falls_with_the_declared_power_of_the_step(solver, process, x64):
    assert problems.observed_order(solver, process, (32, 64)) == pytest.approx(solver.order, abs=0.15)


@every_solver
@pytest.mark.parametrize(
    "process",
    [RectifiedFlow(), SubVP(), pytest.param(Trigonometric(), marks=pytest.mark.slow)],
    ids=lambda p: type(p).__name__,
)
def test_it_does_so_on_a_whole_path_too_where_velocities_are_finite(solver, process, x64):
    errors = [problems.whole_error(solver, process, np.linspace(1, 0, n + 1)) for n in (128, 256)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.2)


@every_solver
def test_straight_lines_are_followed_exactly_in_any_steps(solver):
    x_0, eps = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    times = np.array([1.0, 0.9, 0.35, 0.3, 0.0])
    x = integrate(solver, RectifiedFlow(), lambda x, t: Denoised(x_0, eps), eps, times, trajectory=True)
    t = times[:, None, None]
    np.testing.assert_allclose(x, (1 - t) * x_0 + t * eps, atol=1e-6)


def test_trajectories_equal_those_of_diffusers(golden, x64):
    runs = problems.runs_of(golden, "Euler", "Heun")
    assert runs == ["euler_28_shift3", "euler_50_shift1", "heun_flow"]
    for run in runs:
        assert problems.distance_from_golden(golden, run) < 2e-6
