"""DDIM: from a deterministic path to ancestral sampling, by the share of the noise that is drawn anew.

    x+ = alpha+ x_0 + sqrt(sigma+^2 - s^2) eps + s n,        s = eta (standard deviation of x+ given x and x_0)

(Song, Meng and Ermon 2021, arXiv:2010.02502, equation 12, here for any alpha and sigma.) With eta = 1 it is ancestral
sampling as in DDPM, with the variance of the posterior. Nothing is divided by alpha, so a path may start where
alpha = 0; the last step, to sigma+ = 0, adds no noise.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from genjax.diffusion.process import posterior
from genjax.diffusion.solvers.integrate import at
from genjax.errors import InputError

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM:
    """Steps along the straight line from the estimate of the noise to that of the data, with a share of new noise."""

    eta: float = 0.0
    """Share of the posterior's standard deviation that is drawn anew: 0 for none, 1 for that of DDPM."""
    evaluations_per_step = 1
    order = 1
    evaluates_last = False
    needs = ()

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta of DDIM lies in [0, 1], not at {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def initialise(self, x):
        return x

    def step(self, process, denoiser, x, step):
        x_0, eps = at(denoiser, x, step.t)[:2]
        alpha, sigma = process.alpha(step.t_next), process.sigma(step.t_next)
        if not self.stochastic:
            return alpha * x_0 + sigma * eps
        fresh = self.eta * jnp.sqrt(posterior(process, step.t_next, step.t).variance)
        kept = jnp.sqrt(jnp.maximum(sigma**2 - fresh**2, 0.0))
        return alpha * x_0 + kept * eps + fresh * step.noise(x)

    def finalise(self, x):
        return x
