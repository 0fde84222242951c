"""The processes of the field, each a pair (alpha, sigma) on t in [0, 1], from data to noise.

    VP             alpha = exp(-t^2 (beta_max - beta_min) / 4 - t beta_min / 2)    sigma = sqrt(1 - alpha^2)
    CosineVP       alpha = cos(angle) / cos(angle at 0)                            sigma = sqrt(1 - alpha^2)
                   angle = pi / 2 (t + s) / (1 + s)
    SubVP          alpha of VP                                                     sigma = 1 - alpha^2
    VE             alpha = 1                               sigma = sigma_min (sigma_max / sigma_min)^t
    EDM            alpha = 1                               sigma = sigma_max t
    Trigonometric  alpha = cos(pi t / 2)                   sigma = sin(pi t / 2)
    DDPM           alpha^2 = product of (1 - beta_n) up to step 1000 t             sigma = sqrt(1 - alpha^2)

VP, SubVP and VE are Song et al. 2021 (arXiv:2011.13456, appendix B); CosineVP is Nichol and Dhariwal 2021
(arXiv:2102.09672, equation 17); EDM is Karras et al. 2022 (arXiv:2206.00364); DDPM is Ho et al. 2020
(arXiv:2006.11239). RectifiedFlow stands beside their protocol, in genjax/diffusion/process.py.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.errors import InputError

__all__ = ["DDPM", "EDM", "VE", "VP", "CosineVP", "SubVP", "Trigonometric"]


@dataclass(frozen=True)
class _LinearBeta:
    """alpha of dx = -beta(t) x / 2 dt + ..., with beta(t) = beta_min + t (beta_max - beta_min)."""

    beta_min: float = 0.1
    """beta(0), per unit of time: 1,000 times the first of DDPM's steps."""
    beta_max: float = 20.0
    """beta(1), per unit of time: 1,000 times the last of DDPM's steps."""

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise InputError(
                f"beta_min and beta_max of {type(self).__name__} are positive, the second no less than the first; "
                f"not {self.beta_min} and {self.beta_max}"
            )

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self._log_alpha(t))

    def _log_alpha(self, t: Array) -> Array:
        return -t * (self.beta_min / 2 + t * (self.beta_max - self.beta_min) / 4)


@dataclass(frozen=True)
class VP(_LinearBeta):
    """The variance-preserving SDE dx = -beta x / 2 dt + sqrt(beta) dw: DDPM in continuous time (Song et al. 2021)."""

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2 * self._log_alpha(t)))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """VP with less noise at every time: sigma = 1 - alpha^2, which is VP's variance (Song et al. 2021, equation 29)."""

    def sigma(self, t: Array) -> Array:
        return -jnp.expm1(2 * self._log_alpha(t))


@dataclass(frozen=True)
class CosineVP:
    """A quarter of a cosine, whose log-SNR falls almost evenly (Nichol and Dhariwal 2021, equation 17).

    Its beta(t) = pi / (1 + s) tan(angle) would be infinite at t = 1. Where it reaches beta_max it stays there, so that
    alpha ends in an exponential, with a continuous slope.
    """

    offset: float = 0.008
    """s, which keeps beta(0) above 0."""
    beta_max: float = 999.0
    """The largest beta(t), per unit of time: 0.999 in each of 1,000 steps."""

    def __post_init__(self) -> None:
        if not 0 <= self.offset < math.inf:
            raise InputError(f"offset of CosineVP is 0 or more, not {self.offset}")
        if not self._beta_min < self.beta_max < math.inf:
            raise InputError(f"beta_max of CosineVP is above beta(0) = {self._beta_min:.4g}, not {self.beta_max}")

    @property
    def _start(self) -> float:
        return math.pi / 2 * self.offset / (1 + self.offset)

    @property
    def _beta_min(self) -> float:
        return math.pi / (1 + self.offset) * math.tan(self._start)

    def _angle_and_tail(self, t: Array) -> tuple[Array, Array]:
        """Of the cosine, how far it has turned since t = 0; of the tail, log(alpha^2) since it began."""
        speed = math.pi / 2 / (1 + self.offset)
        corner = (math.atan(self.beta_max / (2 * speed)) - self._start) / speed
        return speed * jnp.minimum(t, corner), -self.beta_max * jnp.maximum(t - corner, 0.0)

    def alpha(self, t: Array) -> Array:
        turned, tail = self._angle_and_tail(t)
        # sin(pi / 2 - angle), because a cosine loses its digits where it is small.
        return jnp.sin(math.pi / 2 - self._start - turned) / math.cos(self._start) * jnp.exp(tail / 2)

    def sigma(self, t: Array) -> Array:
        turned, tail = self._angle_and_tail(t)
        # cos(a)^2 - cos(a + b)^2 = sin(b) sin(2 a + b)
        lost = jnp.sin(turned) * jnp.sin(2 * self._start + turned) / math.cos(self._start) ** 2
        return jnp.sqrt(lost - (1 - lost) * jnp.expm1(tail))


@dataclass(frozen=True)
class VE:
    """The variance-exploding SDE: the data stays, and the noise grows geometrically (Song et al. 2021, equation 30).

    Time 0 is data with a noise of sigma_min, which must be invisible in it.
    """

    sigma_min: float = 0.01
    """The smallest noise, in the units of the data."""
    sigma_max: float = 50.0
    """The largest noise: about the largest distance between two data points."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(
                "sigma_min and sigma_max of VE are positive, the second the larger; "
                f"not {self.sigma_min} and {self.sigma_max}"
            )

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return self.sigma_min * jnp.exp(t * math.log(self.sigma_max / self.sigma_min))


@dataclass(frozen=True)
class EDM:
    """The data stays, and the noise grows linearly: sigma = sigma_max t (Karras et al. 2022, section 3).

    Their ODE has sigma itself as its time. A constant factor leaves every step of every solver what it is, so that
    Heun's on times sigma_i / sigma_max is their sampler; a map by the logarithm would be another one, and would have no
    time for data without noise. Their sigma_min belongs to the grid, and their log-normal noise to the time density.
    """

    sigma_max: float = 80.0
    """The largest noise, in the units of the data."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma_max < math.inf:
            raise InputError(f"sigma_max of EDM is positive, not {self.sigma_max}")

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return self.sigma_max * t


@dataclass(frozen=True)
class Trigonometric:
    """A quarter of a circle at an even pace: alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Albergo et al. 2023)."""

    def alpha(self, t: Array) -> Array:
        return jnp.sin(math.pi / 2 * (1 - t))  # exactly 0 at t = 1, where a float32 cosine is negative

    def sigma(self, t: Array) -> Array:
        return jnp.sin(math.pi / 2 * t)


@dataclass(frozen=True)
class DDPM:
    """The chain of N discrete steps, read at all times: step n = 1, ..., N is at t = n / N, data at t = 0.

    log(alpha^2) is interpolated by a monotone cubic (Fritsch and Butland 1984): beta(t) is continuous, as solvers want
    it, log-SNR decreases, and nothing vanishes by subtraction. Diffusers and the released checkpoints count from 0:
    their timestep is n - 1 = N t - 1.
    """

    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """How beta_n goes from `beta_start` to `beta_end`: linearly (Ho et al. 2020), by its square root (Rombach et al.
    2022), or so that alpha^2 is a cosine (Nichol and Dhariwal 2021), for which the two are not used."""
    beta_start: float = 1e-4
    """beta of the first step; 0.00085 of latent diffusion."""
    beta_end: float = 0.02
    """beta of the last step; 0.012 of latent diffusion."""
    steps: int = 1000
    """N, the number of steps of the chain."""

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "scaled_linear", "cosine"):
            raise InputError(f"schedule of DDPM is linear, scaled_linear or cosine, not {self.schedule!r}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(
                "beta_start and beta_end of DDPM lie in (0, 1), the second no less than the first; "
                f"not {self.beta_start} and {self.beta_end}"
            )
        if self.steps < 1:
            raise InputError(f"steps of DDPM is at least 1, not {self.steps}")

    def betas(self) -> Float[np.ndarray, " N"]:
        """The variances of the N steps, float64."""
        if self.schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.steps)
        if self.schedule == "scaled_linear":
            return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2
        kept = np.cos((np.arange(self.steps + 1) / self.steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - kept[1:] / kept[:-1], 0.999)

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self._log_squared_alpha(t) / 2)

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(self._log_squared_alpha(t)))

    def _log_squared_alpha(self, t: Array) -> Array:
        t = jnp.asarray(t)
        values, rises, slopes = (jnp.asarray(table, t.dtype) for table in _tables(self))
        position = t * self.steps
        step = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, self.steps - 1)
        u = position - step
        bent = slopes[step] * (1 - u) ** 2 - slopes[step + 1] * u * (1 - u)
        return values[step] + u * (rises[step] * u * (3 - 2 * u) + bent)

    def times(
        self, steps: int, spacing: Literal["leading", "linspace", "trailing"] = "trailing"
    ) -> Float[np.ndarray, " times"]:
        """Respacing: steps + 1 times from noise to data, float64, the last one 0.

        They are at steps of the chain; a sampler that goes from one to the next is that of a chain of `steps` steps
        with the same alphas (Nichol and Dhariwal 2021, section 4). `leading` begins with the first step of the chain
        and misses its last; `trailing` begins with the last, which a schedule that ends in pure noise needs (Lin et al.
        2023, arXiv:2305.08891, table 2); `linspace` has both. Raises InputError for a number that is not in [1, N].
        """
        if not 1 <= steps <= self.steps:
            raise InputError(f"a chain of {self.steps} steps takes 1 to {self.steps} of them, not {steps}")
        if spacing == "leading":
            kept = np.arange(steps) * (self.steps // steps)
        elif spacing == "linspace":
            kept = np.linspace(0, self.steps - 1, steps).round()
        elif spacing == "trailing":
            kept = np.round(np.arange(self.steps, 0, -self.steps / steps))[:steps][::-1] - 1
        else:
            raise InputError(f"the spacing of a chain is leading, linspace or trailing, not {spacing!r}")
        return np.append((kept[::-1] + 1) / self.steps, 0.0)


@functools.cache
def _tables(process: DDPM) -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, " N"], Float[np.ndarray, " nodes"]]:
    """log(alpha^2) after 0, ..., N steps, its rise in each step, and its slope per step where two of them meet."""
    rises = np.log1p(-process.betas())
    inner = 2 * rises[1:] * rises[:-1] / (rises[1:] + rises[:-1])
    return np.append(0.0, np.cumsum(rises)), rises, np.concatenate([rises[:1], inner, rises[-1:]])
