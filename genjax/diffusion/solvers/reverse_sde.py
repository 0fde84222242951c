"""Solvers of the reverse SDE dx = (f x - g^2 score) dt + g dw: DDPM, and predictors with Langevin correctors.

(Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456: equation 6, algorithms 1 to 5, appendices E to
G.) Here h = t - t+ > 0, score = -eps / sigma, a = alpha / alpha+, and v is the variance that the forward process adds
from t+ to t.

    ancestral (DDPM)     x+ ~ the posterior given x and x_0, with its variance (small) or with v (large)
    reverse diffusion    x+ = (2 - a) x + v score + sqrt(v) n                   the forward step, run backwards
    Euler-Maruyama       x+ = x - h (f x - g^2 score) + g sqrt(h) n
    corrector            x  = x + e score + sqrt(2 e) n,      e = 2 a^2 (snr size)^2,        before each of these

The corrector's size is |n| / |score| of each sample, or sigma, which is its value for data like noise (and is taken
where the score is 0). The reference
takes the means of the norms over a batch; here a sample does not depend on its neighbours. Steps of the corrector do
not become small with those of the predictor, so that with correctors there is no order of convergence.

The last step adds no noise, as in the references.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.predictions import step_log_variance
from genjax.diffusion.process import Process, posterior, sde, transition
from genjax.diffusion.solvers.integrate import Denoiser, Step, at
from genjax.diffusion.solvers.needs import SIGNAL_AT_START, VELOCITY_AT_START
from genjax.errors import InputError

__all__ = ["Ancestral", "EulerMaruyama", "Langevin", "ReverseDiffusion"]


@dataclass(frozen=True)
class Langevin:
    """Steps of Langevin dynamics at one time, which leave the density of that time as it is if they are small."""

    steps: int = 1
    """Steps before each one of the predictor, an evaluation each."""
    snr: float = 0.16
    """Signal-to-noise ratio r of a step, at least 0."""
    size: Literal["norms", "sigma"] = "norms"
    """What a step is measured by: norms of the noise and of the score of the sample, or sigma (annealed). Norms of few
    numbers vary with the sample, and bias it: by about 2 / their number in the variance."""

    def __post_init__(self):
        if self.steps < 0:
            raise InputError(f"the number of steps of a Langevin corrector is at least 0, not {self.steps}")
        if not self.snr > 0:
            raise InputError(f"the snr of a Langevin corrector is positive, not {self.snr}")

    def __call__(
        self, process: Process, denoiser: Denoiser, x: Float[Array, "B *shape"], step: Step
    ) -> Float[Array, "B *shape"]:
        """x after its steps at the time that `step` begins with."""
        shrunk = process.alpha(step.t) / process.alpha(step.t_next)

        def correct(draw, x):
            noise, score = step.noise(x, draw), -at(denoiser, x, step.t).eps / process.sigma(step.t)
            size = process.sigma(step.t)
            if self.size == "norms":  # of which a score of 0 has none
                norm = _norm(score)
                size = jnp.where(norm > 0, _norm(noise) / jnp.where(norm > 0, norm, 1), size)
            e = 2 * (shrunk * self.snr * size) ** 2
            return x + e * score + jnp.sqrt(2 * e) * noise

        return jax.lax.fori_loop(1, 1 + self.steps, correct, x) if self.steps else x


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True))


class _PredictorCorrector:
    """What the three have in common: correctors first, then the step, without noise if it is the last."""

    stochastic = True
    evaluates_last = False

    @property
    def evaluations_per_step(self) -> int:
        return 1 + self.corrector.steps

    @property
    def order(self) -> int:
        return 0 if self.corrector.steps else 1

    def initialise(self, x):
        return x

    def step(self, process, denoiser, x, step):
        x = self.corrector(process, denoiser, x, step)
        mean, variance = self.predicted(process, at(denoiser, x, step.t), x, step)
        std = jnp.sqrt(jnp.where(step.index == step.steps - 1, 0.0, variance))
        return mean + std * step.noise(x)

    def finalise(self, x):
        return x


@dataclass(frozen=True)
class Ancestral(_PredictorCorrector):
    """Ancestral sampling: DDPM's steps, and without a corrector the whole of its sampler."""

    variance: Literal["small", "large", "learned"] = "small"
    """That of the posterior given the data, which is right for data in one point; that of the forward step, which is
    right for data like noise (Ho et al. 2020, section 3.2); or between them, as a network has learned it."""
    corrector: Langevin = Langevin(steps=0)
    """Steps of Langevin dynamics before each step."""
    needs = ()

    def predicted(self, process, denoised, x, step):
        back = posterior(process, step.t_next, step.t)
        variance = back.variance
        if self.variance == "large":
            variance = transition(process, step.t_next, step.t).variance
        if self.variance == "learned":
            if denoised.variance_fraction is None:
                raise InputError("variance of Ancestral is learned, and this network has learned none: small or large")
            variance = jnp.exp(step_log_variance(process, denoised.variance_fraction, step.t_next, step.t))
        return back.of_x_t * x + back.of_x_0 * denoised.x_0, variance


@dataclass(frozen=True)
class ReverseDiffusion(_PredictorCorrector):
    """The forward process between two times, run backwards (Song et al. 2021, appendix E)."""

    corrector: Langevin = Langevin(steps=0)
    """Steps of Langevin dynamics before each step; one in the reference."""
    needs = (SIGNAL_AT_START,)

    def predicted(self, process, denoised, x, step):
        forward = transition(process, step.t_next, step.t)
        mean = (2 - forward.scale) * x - forward.variance / process.sigma(step.t) * denoised.eps
        return mean, forward.variance


@dataclass(frozen=True)
class EulerMaruyama(_PredictorCorrector):
    """First-order steps of the reverse SDE in the time of the process."""

    corrector: Langevin = Langevin(steps=0)
    """Steps of Langevin dynamics before each step."""
    needs = (SIGNAL_AT_START, VELOCITY_AT_START)

    def predicted(self, process, denoised, x, step):
        forward, h = sde(process, step.t), step.t - step.t_next
        score = -denoised.eps / process.sigma(step.t)
        mean = x - h * (forward.drift * x - forward.squared_diffusion * score)
        return mean, forward.squared_diffusion * h
