"""Runge-Kutta methods for the probability-flow ODE dx/dt = v(x, t) in the time of the process.

    Euler    x+ = x + h v(x, t)                                   h = t+ - t, negative from noise to data
    Heun     x+ = x + h (k_1 + k_2) / 2                           k_1 = v(x, t), k_2 = v(x + h k_1, t+)
    RK4      x+ = x + h (k_1 + 2 k_2 + 2 k_3 + k_4) / 6           k_2, k_3 in the middle of the step, k_4 at its end

(Hairer, Norsett and Wanner 1993, Solving Ordinary Differential Equations I, section II.1.) They follow straight lines
exactly, and so a rectified flow in one step if it is straight. All evaluate v at the start of a path and all but Euler
at its end, where some processes have none: sigma of a variance-preserving SDE leaves 0 as the square root of t.
"""

from dataclasses import dataclass

from genjax.diffusion.solvers.integrate import slope
from genjax.diffusion.solvers.needs import VELOCITY_AT_END, VELOCITY_AT_START

__all__ = ["RK4", "Euler", "Heun"]


@dataclass(frozen=True)
class Euler:
    """First-order steps along the velocity."""

    evaluations_per_step = 1
    order = 1
    stochastic = False
    evaluates_last = False
    needs = (VELOCITY_AT_START,)

    def initialise(self, x):
        return x

    def step(self, process, denoiser, x, step):
        return x + (step.t_next - step.t) * slope(process, denoiser, x, step.t)

    def finalise(self, x):
        return x


@dataclass(frozen=True)
class Heun:
    """The explicit trapezoidal rule: the mean of the velocities at both ends of an Euler step."""

    evaluations_per_step = 2
    order = 2
    stochastic = False
    evaluates_last = True
    needs = (VELOCITY_AT_START, VELOCITY_AT_END)

    def initialise(self, x):
        return x

    def step(self, process, denoiser, x, step):
        h = step.t_next - step.t
        start = slope(process, denoiser, x, step.t)
        end = slope(process, denoiser, x + h * start, step.t_next)
        return x + h * (start + end) / 2

    def finalise(self, x):
        return x


@dataclass(frozen=True)
class RK4:
    """The classical method of fourth order."""

    evaluations_per_step = 4
    order = 4
    stochastic = False
    evaluates_last = True
    needs = (VELOCITY_AT_START, VELOCITY_AT_END)

    def initialise(self, x):
        return x

    def step(self, process, denoiser, x, step):
        h = step.t_next - step.t
        middle = step.t + h / 2
        first = slope(process, denoiser, x, step.t)
        second = slope(process, denoiser, x + h / 2 * first, middle)
        third = slope(process, denoiser, x + h / 2 * second, middle)
        fourth = slope(process, denoiser, x + h * third, step.t_next)
        return x + h * (first + 2 * second + 2 * third + fourth) / 6

    def finalise(self, x):
        return x
