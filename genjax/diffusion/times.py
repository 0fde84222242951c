"""Densities of the training time t in (0, 1), sampled continuously (SD3, Esser et al. 2024, section 3.1).

Each is given by its quantile function, so that t = quantile(u) with u uniform, and by its density; for all of them
density(quantile(u)) * quantile'(u) = 1. t = 1 is noise. All four have their mass symmetric about 1/2 (LogitNormal for
mean 0; a positive mean puts more of it on the noisy side).
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from genjax.errors import InputError

__all__ = ["CosMap", "LogitNormal", "Mode", "TimeDensity", "Uniform", "shifted"]


@runtime_checkable
class TimeDensity(Protocol):
    """A distribution over training times."""

    def quantile(self, u: Array) -> Array: ...

    def density(self, t: Array) -> Array: ...


@dataclass(frozen=True)
class Uniform:
    """Every time equally often."""

    def quantile(self, u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return u

    def density(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.ones_like(t)


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2) (SD3, equation 19): the middle of the path more often than its ends."""

    mean: float = 0.0
    """Mean of logit(t); positive favours noisy times."""
    std: float = 1.0
    """Standard deviation of logit(t)."""

    def __post_init__(self):
        if self.std <= 0:
            raise InputError(f"the std of a LogitNormal time density is positive, not {self.std}")

    def quantile(self, u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(self.mean + self.std * ndtri(u))

    def density(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return norm.pdf(jnp.log(t) - jnp.log1p(-t), self.mean, self.std) / (t * (1 - t))


@dataclass(frozen=True)
class Mode:
    """Mode sampling with heavy tails (SD3, equation 20): t = 1 - u - s (cos^2(pi u / 2) - 1 + u)."""

    scale: float = 1.29
    """s, from -1 to 2 / (pi - 2) = 1.75; positive favours the middle of the path, negative its ends."""

    def __post_init__(self):
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise InputError(f"the scale of a Mode time density lies in [-1, 2 / (pi - 2)], not at {self.scale}")

    def quantile(self, u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        # The paper's map with u replaced by 1 - u, which makes it increase.
        return u - self.scale * (jnp.sin(jnp.pi * u / 2) ** 2 - u)

    def density(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """1 / quantile'(u) at the u with quantile(u) = t, which bisection finds."""

        def halve(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            left = self.quantile(middle) < t
            return jnp.where(left, middle, low), jnp.where(left, high, middle)

        low, high = jax.lax.fori_loop(0, 60, halve, (jnp.zeros_like(t), jnp.ones_like(t)))
        slope = 1 + self.scale * (1 - jnp.pi / 2 * jnp.sin(jnp.pi * (low + high) / 2))
        return 1 / slope


@dataclass(frozen=True)
class CosMap:
    """The log-SNR density of the cosine schedule (SD3, equation 21): t = 1 - 1 / (tan(pi u / 2) + 1)."""

    def quantile(self, u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        # sin / (sin + cos) is the same map without the infinite tangent at u = 1, where this cosine is exactly 0.
        sine, cosine = jnp.sin(jnp.pi * u / 2), jnp.sin(jnp.pi * (1 - u) / 2)
        return sine / (sine + cosine)

    def density(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return 2 / (jnp.pi - 2 * jnp.pi * t + 2 * jnp.pi * t**2)


def shifted(t: Float[Array, "*shape"], shift: float) -> Float[Array, "*shape"]:
    """The resolution-dependent shift s t / (1 + (s - 1) t) (SD3, equation 23); s = sqrt(pixels / base pixels) > 0.

    Shifts compose by multiplying, and 1 / s undoes s.
    """
    return shift * t / (1 + (shift - 1) * t)
