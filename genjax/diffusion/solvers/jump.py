"""Steps along the mean velocity between their ends (MeanFlow, Geng et al. 2025, arXiv:2505.13447, algorithm 2).

    x+ = x + h u(x, t, t+)                                        h = t+ - t, negative from noise to data

One step is exact for an exact mean velocity, however long it is. What it is told of is not a velocity at a time, so its
denoiser takes the end of the step besides: `denoiser(x, t, t_next)`, with the pair whose velocity at x is u. (Guidance
of a jump extrapolates means, and is a heuristic: the mean of the guided velocity is another one.)
"""

from dataclasses import dataclass

from genjax.diffusion.solvers.integrate import slope
from genjax.diffusion.solvers.needs import VELOCITY_AT_START

__all__ = ["Jump"]


@dataclass(frozen=True)
class Jump:
    """Steps along mean velocities; for a network that predicts them (`MeanVelocity`)."""

    evaluations_per_step = 1
    order = 1
    stochastic = False
    evaluates_last = False
    needs = (VELOCITY_AT_START,)

    def initialise(self, x):
        return x

    def step(self, process, denoiser, x, step):
        return x + (step.t_next - step.t) * slope(process, denoiser, x, step.t, step.t_next)

    def finalise(self, x):
        return x
