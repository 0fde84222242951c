"""What a network predicts, and how it turns into (x_0, eps), the hub through which all predictions convert.

(Salimans and Ho 2022, arXiv:2202.00512, section 4, has the conversions for alpha^2 + sigma^2 = 1.)
A prediction is linear in the hub, and so is x_t; two equations in two unknowns:

    x_t      = alpha x_0 + sigma eps             x_0 = (sigma' x_t - sigma velocity) / d
    velocity = alpha' x_0 + sigma' eps     =>    eps = (alpha velocity - alpha' x_t) / d
                                                 d   = alpha sigma' - alpha' sigma
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array

from genjax.diffusion.process import Process, Times, coefficients, like, velocity

__all__ = ["Denoised", "Prediction", "Velocity"]


class Denoised(NamedTuple):
    """An estimate of the data and of the noise that x_t was made of; each has the shape of x_t."""

    x_0: Array
    eps: Array


@runtime_checkable
class Prediction(Protocol):
    """A kind of network output."""

    def target(self, process: Process, x_0: Array, eps: Array, t: Array) -> Array:
        """What the network should say at x_t = alpha x_0 + sigma eps."""

    def denoised(self, process: Process, output: Array, x_t: Array, t: Array) -> Denoised:
        """The hub (x_0, eps) that the network's output stands for."""


@dataclass(frozen=True)
class Velocity:
    """The network predicts dx_t/dt; for a rectified flow eps - x_0 (SD3, equation 13 and before)."""

    def target(self, process: Process, x_0: Array, eps: Array, t: Times) -> Array:
        return velocity(process, x_0, eps, t)

    def denoised(self, process: Process, output: Array, x_t: Array, t: Times) -> Denoised:
        c = coefficients(process, like(t, x_t))
        determinant = c.alpha * c.d_sigma - c.d_alpha * c.sigma
        return Denoised(
            x_0=(c.d_sigma * x_t - c.sigma * output) / determinant,
            eps=(c.alpha * output - c.d_alpha * x_t) / determinant,
        )
