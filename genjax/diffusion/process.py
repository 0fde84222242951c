"""Noise processes: the pair (alpha, sigma) of a Gaussian path from data to noise.

Time t runs over [0, 1]; t = 0 is data and t = 1 is noise:

    x_t = alpha(t) x_0 + sigma(t) eps,        eps ~ N(0, I)
    velocity  dx_t/dt = alpha'(t) x_0 + sigma'(t) eps

A process is just the two functions; everything else follows, with derivatives by autodiff.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Coefficients", "Process", "RectifiedFlow", "Times", "coefficients", "like", "log_snr", "noised", "velocity"]

Times = Float[Array, " B"] | Float[Array, ""]
"""A time for each sample, or one for all."""


@runtime_checkable
class Process(Protocol):
    """What a noise process is: two smooth functions of time, elementwise."""

    def alpha(self, t: Array) -> Array: ...

    def sigma(self, t: Array) -> Array: ...


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight lines from data to noise: alpha = 1 - t, sigma = t (Liu et al. 2022; Stable Diffusion 3)."""

    def alpha(self, t: Array) -> Array:
        return 1.0 - t

    def sigma(self, t: Array) -> Array:
        return 1.0 * t


class Coefficients(NamedTuple):
    """alpha, sigma and their time derivatives, of the shape of the time they were taken at."""

    alpha: Array
    sigma: Array
    d_alpha: Array
    d_sigma: Array


def coefficients(process: Process, t: Float[Array, "*shape"]) -> Coefficients:
    """The process and its derivatives at time t."""
    ones = jnp.ones_like(t)
    alpha, d_alpha = jax.jvp(process.alpha, (t,), (ones,))
    sigma, d_sigma = jax.jvp(process.sigma, (t,), (ones,))
    return Coefficients(alpha, sigma, d_alpha, d_sigma)


def noised(
    process: Process, x_0: Float[Array, "B *shape"], eps: Float[Array, "B *shape"], t: Times
) -> Float[Array, "B *shape"]:
    """x_t = alpha(t) x_0 + sigma(t) eps, with a time (B,) for each sample, or one time () for all."""
    t = like(t, x_0)
    return process.alpha(t) * x_0 + process.sigma(t) * eps


def velocity(
    process: Process, x_0: Float[Array, "B *shape"], eps: Float[Array, "B *shape"], t: Times
) -> Float[Array, "B *shape"]:
    """dx_t/dt = alpha'(t) x_0 + sigma'(t) eps, along the path through (x_0, eps)."""
    c = coefficients(process, like(t, x_0))
    return c.d_alpha * x_0 + c.d_sigma * eps


def log_snr(process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """lambda(t) = log(alpha / sigma), half of the log signal-to-noise ratio; infinite at the ends of a path."""
    return jnp.log(process.alpha(t)) - jnp.log(process.sigma(t))


def like(t: Times, x: Float[Array, "B *shape"]) -> Float[Array, "*ones"]:
    """Times (B,), or one time (), with the axes that make them broadcast against x."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
