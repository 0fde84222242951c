"""Networks that learn the variance of a step back beside its mean (Nichol and Dhariwal 2021, arXiv:2102.09672).

Their loss has a bound on the likelihood beside the error of the prediction, the hybrid loss (equation 16):

    L = L_simple + 0.001 L_vlb,        L_vlb = sum over steps of KL(q(x_s | x_t, x_0) | p(x_s | x_t))

in bits per dimension. The second moves the variance alone: no gradient goes through the mean. One step stands for the
sum, times their number.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.likelihood import step_bound
from genjax.diffusion.predictions import (
    Denoised,
    Eps,
    Inputs,
    Network,
    Part,
    Prediction,
    SquaredError,
    Weigh,
    squared_error,
)
from genjax.diffusion.process import Process, Times, noised
from genjax.errors import InputError

__all__ = ["LearnedVariance"]


@dataclass(frozen=True)
class LearnedVariance:
    """Twice the channels: a prediction, and in the second half the variance of a step back.

    A number u there puts log(variance) a fraction (u + 1) / 2 of the way from the posterior's (beta-tilde) to the
    transition's (beta) (Nichol and Dhariwal 2021, arXiv:2102.09672, equation 15, with ADM's range [-1, 1]). Its
    loss has a bound on the likelihood beside the squared error, which teaches the variance.
    """

    mean: Prediction = Eps()
    """What the first half of the channels predicts."""
    vlb_weight: float = 0.001
    """Weight of the bound, in bits per dimension of all steps together, beside the error of the prediction."""
    steps: int = 1000
    """Number of steps of the chain whose bound it is, at least 2: one goes from t to t - 1 / steps. (The step to the
    data takes the variance of the one before, and a chain of one step has none.)"""
    levels: int = 256
    """How many values a pixel takes, evenly from -1 to 1: of them the bound is."""

    def __post_init__(self) -> None:
        if not isinstance(self.mean, SquaredError):
            kind = type(self.mean).__name__
            raise InputError(
                f"mean of LearnedVariance is learned by its squared error, and {kind} has a loss of its own"
            )
        if self.levels < 2:
            raise InputError(f"levels of LearnedVariance is at least 2, not {self.levels}")
        if not 0 <= self.vlb_weight < math.inf:
            raise InputError(f"vlb_weight of LearnedVariance is 0 or more, not {self.vlb_weight}")
        if self.steps < 2:
            raise InputError(f"steps of LearnedVariance is at least 2, not {self.steps}")

    @property
    def needs(self) -> tuple[Part, ...]:
        return self.mean.needs

    def inputs(self, process: Process, x_t: Array, t: Times) -> Inputs:
        return self.mean.inputs(process, x_t, t)

    def target(self, process: Process, x_0: Array, eps: Array, t: Times) -> Array:
        """That of `mean`, for the first half of the channels."""
        return self.mean.target(process, x_0, eps, t)

    def denoised(self, process: Process, output: Array, x_t: Array, t: Times) -> Denoised:
        if output.shape[-1] != 2 * x_t.shape[-1]:
            raise InputError(
                f"a network that learns its variance says {2 * x_t.shape[-1]} channels about {x_t.shape[-1]}, "
                f"not {output.shape[-1]}"
            )
        mean, u = jnp.split(output, 2, axis=-1)
        return self.mean.denoised(process, mean, x_t, t)._replace(variance_fraction=(u + 1) / 2)

    def loss(
        self,
        network: Network,
        process: Process,
        x_0: Float[Array, "B *shape"],
        eps: Float[Array, "B *shape"],
        t: Float[Array, " B"],
        weigh: Weigh,
        keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, " B"]:
        """The hybrid loss; the weight is on the squared error alone."""
        x_t = noised(process, x_0, eps, t)
        output = network(*self.inputs(process, x_t, t))
        mean, variance = jnp.split(output, 2, axis=-1)
        loss = squared_error(mean - self.target(process, x_0, eps, t)) * weigh(self.mean, t)
        if not self.vlb_weight:
            return loss
        fixed_mean = jnp.concatenate([jax.lax.stop_gradient(mean), variance], axis=-1)
        denoised = self.denoised(process, fixed_mean, x_t, t)
        # A step that ends nearer to the data than half of one ends there: its KL would be as large as it likes.
        before = jnp.where(t < 1.5 / self.steps, 0, t - 1 / self.steps)
        bound = step_bound(process, denoised, x_0, x_t, before, t, levels=self.levels)
        return loss + self.vlb_weight * self.steps * bound
