"""EDM's sampler: Heun's method in s = sigma / alpha, with churn: noise added before a step, and removed by it.

With y = x / alpha, which is data plus s times noise, the probability-flow ODE is dy/ds = eps:

    s^  = (1 + gamma) s,    y^ = y + sqrt(s^^2 - s^2) S_noise n        gamma = min(S_churn / N, sqrt(2) - 1)
    y+  = y^ + (s+ - s^) (eps(y^, s^) + eps(y_Euler, s+)) / 2                     where S_min <= s <= S_max, else 0

(Karras et al. 2022, arXiv:2206.00364, algorithm 2; alpha = 1 there.) The step to s+ = 0 is Euler's.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from genjax.diffusion.process import time_of_log_snr
from genjax.diffusion.solvers.integrate import at
from genjax.diffusion.solvers.needs import SIGNAL_AT_START
from genjax.errors import InputError

__all__ = ["EDMHeun"]


@dataclass(frozen=True)
class EDMHeun:
    """Second-order steps in sigma / alpha, deterministic unless churned.

    The last of the two evaluations of a step to sigma = 0 is thrown away (EDM counts 2 N - 1 for N steps).
    """

    churn: float = 0.0
    """S_churn, at least 0: how much noise is added over all steps; 0 for none."""
    churn_min: float = 0.0
    """S_min: the smallest sigma / alpha at which noise is added."""
    churn_max: float | None = None
    """S_max: the largest sigma / alpha at which noise is added; None: there is none."""
    churn_noise: float = 1.0
    """S_noise: factor of the noise that is added; 1.003 or so makes up for a network's blur."""
    evaluations_per_step = 2
    evaluates_last = False
    needs = (SIGNAL_AT_START,)

    def __post_init__(self):
        if not self.churn >= 0:
            raise InputError(f"churn of EDMHeun is at least 0, not {self.churn}")
        if not 0 <= self.churn_min <= self._churn_max:
            raise InputError(
                f"churn_min and churn_max of EDMHeun are 0 <= churn_min <= churn_max, not {self.churn_min} and"
                f" {self.churn_max}"
            )
        if not self.churn_noise > 0:
            raise InputError(f"churn_noise of EDMHeun is positive, not {self.churn_noise}")

    @property
    def _churn_max(self) -> float:
        return math.inf if self.churn_max is None else self.churn_max

    @property
    def order(self) -> int:
        return 2

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    def initialise(self, x):
        return x

    def step(self, process, denoiser, x, step):
        t, end = step.t, process.alpha(step.t_next)
        s, s_next = process.sigma(t) / process.alpha(t), process.sigma(step.t_next) / end
        y = x / process.alpha(t)
        if self.stochastic:
            inside = (s >= self.churn_min) & (s <= self._churn_max)
            raised = s * (1 + jnp.minimum(self.churn / step.steps, np.sqrt(2) - 1))
            churned = jnp.maximum(time_of_log_snr(process, -jnp.log(raised)), t)  # no further than t = 1
            t = jnp.where(inside, churned, t)  # bisection has too few digits to find t itself again
            raised = process.sigma(t) / process.alpha(t)
            y = y + self.churn_noise * jnp.sqrt(jnp.maximum(raised**2 - s**2, 0.0)) * step.noise(x)
            s = raised
        start = at(denoiser, process.alpha(t) * y, t).eps
        euler = y + (s_next - s) * start
        slope = (start + at(denoiser, end * euler, step.t_next).eps) / 2
        return end * jnp.where(s_next > 0, y + (s_next - s) * slope, euler)

    def finalise(self, x):
        return x
