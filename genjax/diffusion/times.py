"""Densities of the training time t in (0, 1), sampled continuously (SD3, Esser et al. 2024, section 3.1).

Each is given by its quantile function, so that t = quantile(u) with u uniform, and by its density; for all of them
density(quantile(u)) * quantile'(u) = 1. t = 1 is noise. Uniform, LogitNormal, Mode and CosMap know no process, and
have their mass symmetric about 1/2 (LogitNormal for mean 0; a positive mean puts more of it on the noisy side).
LogNormal and UniformLogSNR are densities of the noise, and of time through the process: they need it.

How the u of a batch are drawn is a choice of its own. `Independent` ones make a row depend on its own key alone, which
is the house rule. `Stratified` and `Antithetic` ones spread the rows of a batch evenly over (0, 1), each of them still
uniform, and so have less variance in the mean; a row then depends on its place, and on what its batch is.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Key

from genjax.diffusion.process import Process, log_snr, pace, time_of_log_snr
from genjax.errors import InputError

__all__ = [
    "Antithetic",
    "ChainSteps",
    "CosMap",
    "Draws",
    "Independent",
    "LogNormal",
    "LogitNormal",
    "Mode",
    "Stratified",
    "TimeDensity",
    "Uniform",
    "UniformLogSNR",
    "open_uniform",
    "shifted",
]


@runtime_checkable
class TimeDensity(Protocol):
    """A distribution over training times of a process."""

    def quantile(self, u: Array, process: Process) -> Array: ...

    def density(self, t: Array, process: Process) -> Array: ...


@dataclass(frozen=True)
class Uniform:
    """Every time equally often."""

    def quantile(self, u: Float[Array, "*shape"], process: Process | None = None) -> Float[Array, "*shape"]:
        return u

    def density(self, t: Float[Array, "*shape"], process: Process | None = None) -> Float[Array, "*shape"]:
        return jnp.ones_like(t)


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2) (SD3, equation 19): the middle of the path more often than its ends."""

    mean: float = 0.0
    """Mean of logit(t); positive favours noisy times."""
    std: float = 1.0
    """Standard deviation of logit(t)."""

    def __post_init__(self):
        if not 0 < self.std < math.inf:
            raise InputError(f"std of a LogitNormal time density is positive, not {self.std}")
        if not math.isfinite(self.mean):
            raise InputError(f"mean of a LogitNormal time density is finite, not {self.mean}")

    def quantile(self, u: Float[Array, "*shape"], process: Process | None = None) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(self.mean + self.std * ndtri(u))

    def density(self, t: Float[Array, "*shape"], process: Process | None = None) -> Float[Array, "*shape"]:
        return norm.pdf(jnp.log(t) - jnp.log1p(-t), self.mean, self.std) / (t * (1 - t))


@dataclass(frozen=True)
class Mode:
    """Mode sampling with heavy tails (SD3, equation 20): t = 1 - u - s (cos^2(pi u / 2) - 1 + u)."""

    scale: float = 1.29
    """s, from -1 to 2 / (pi - 2) = 1.75; positive favours the middle of the path, negative its ends."""

    def __post_init__(self):
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise InputError(f"scale of a Mode time density lies in [-1, 2 / (pi - 2)], not at {self.scale}")

    def quantile(self, u: Float[Array, "*shape"], process: Process | None = None) -> Float[Array, "*shape"]:
        # The paper's map with u replaced by 1 - u, which makes it increase.
        return u - self.scale * (jnp.sin(jnp.pi * u / 2) ** 2 - u)

    def density(self, t: Float[Array, "*shape"], process: Process | None = None) -> Float[Array, "*shape"]:
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

    def quantile(self, u: Float[Array, "*shape"], process: Process | None = None) -> Float[Array, "*shape"]:
        # sin / (sin + cos) is the same map without the infinite tangent at u = 1, where this cosine is exactly 0.
        sine, cosine = jnp.sin(jnp.pi * u / 2), jnp.sin(jnp.pi * (1 - u) / 2)
        return sine / (sine + cosine)

    def density(self, t: Float[Array, "*shape"], process: Process | None = None) -> Float[Array, "*shape"]:
        return 2 / (jnp.pi - 2 * jnp.pi * t + 2 * jnp.pi * t**2)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2): the noise of EDM, for data of deviation 1/2 (Karras et al. 2022, table 1).

    Cut to the noise that the process has between t = 0 and t = 1; where less than a thousandth of the density is left,
    it is refused with an InputError.
    """

    mean: float = -1.2
    """Mean of the logarithm of the noise, in the units of the data."""
    std: float = 1.2
    """Standard deviation of the logarithm of the noise."""

    def __post_init__(self):
        if not 0 < self.std < math.inf:
            raise InputError(f"std of LogNormal is positive, not {self.std}")
        if not math.isfinite(self.mean):
            raise InputError(f"mean of LogNormal is finite, not {self.mean}")

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        low, high = (ndtr(end) for end in self._ends(process, jnp.asarray(u).dtype))
        return time_of_log_snr(process, -self.mean - self.std * ndtri(low + (high - low) * u))

    def density(self, t: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        low, high = (ndtr(end) for end in self._ends(process, jnp.asarray(t).dtype))
        return norm.pdf(-log_snr(process, t), self.mean, self.std) * pace(process, t) / (high - low)

    def _ends(self, process: Process, dtype) -> tuple[Array, Array]:
        """In standard deviations from the mean."""
        with jax.ensure_compile_time_eval():
            low, high = ((-log_snr(process, jnp.asarray(t, dtype)) - self.mean) / self.std for t in (0.0, 1.0))
            if not ndtr(high) - ndtr(low) >= 1e-3:
                raise InputError(
                    f"{self} has next to nothing in the noise of {type(process).__name__}, whose log(sigma / alpha)"
                    f" lies {low:.3g} to {high:.3g} standard deviations from the mean"
                )
        return low, high


@dataclass(frozen=True)
class UniformLogSNR:
    """log(alpha / sigma) uniform between its values at two times: importance sampling of the bound on -log p.

    The density is proportional to g^2 / sigma^2, the weight of `Likelihood`, and takes its place: with the weighting
    `SNR` the mean loss is that bound, divided by the range of log-SNR, and constant in time but for the error of the
    network; with `Likelihood` the factor would count twice (Song et al. 2021, arXiv:2101.09258, section 5; Kingma et
    al. 2021, section 5.1). Cut to [start, end], as the log-SNR is infinite at the ends of many a path.
    """

    start: float = 1e-5
    """The earliest time."""
    end: float = 1 - 1e-5
    """The latest time."""

    def __post_init__(self):
        if not 0 <= self.start < self.end <= 1:
            raise InputError(
                f"start and end of UniformLogSNR lie in [0, 1] in this order, not {self.start}, {self.end}"
            )

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        first, last = self._ends(process, jnp.asarray(u).dtype)
        return jnp.clip(time_of_log_snr(process, first + (last - first) * u), self.start, self.end)

    def density(self, t: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        first, last = self._ends(process, jnp.asarray(t).dtype)
        return jnp.where((self.start <= t) & (t <= self.end), pace(process, t) / (first - last), 0.0)

    def _ends(self, process: Process, dtype) -> tuple[Array, Array]:
        return tuple(log_snr(process, jnp.asarray(t, dtype)) for t in (self.start, self.end))


@dataclass(frozen=True)
class ChainSteps:
    """One of the times 1 / N, 2 / N, ..., 1 of a chain of N steps (DDPM, Ho et al. 2020, algorithm 1)."""

    steps: int = 1000
    """N."""

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps of ChainSteps is at least 1, not {self.steps}")

    def quantile(self, u: Float[Array, "*shape"], process: Process | None = None) -> Float[Array, "*shape"]:
        return jnp.clip(jnp.ceil(u * self.steps), 1, self.steps) / self.steps

    def density(self, t: Float[Array, "*shape"], process: Process | None = None) -> Float[Array, "*shape"]:
        """Infinite at the steps and 0 elsewhere."""
        return jnp.where(jnp.abs(t * self.steps - jnp.round(t * self.steps)) < 1e-3, jnp.inf, 0.0)


# --------------------------------------------------------------------------------------------------- draws of a batch


@runtime_checkable
class Draws(Protocol):
    """Uniform numbers in (0, 1), without the ends, one for each row of a batch (whose keys are given)."""

    couples_rows: ClassVar[bool]
    """Whether a row's number depends on its place and on the other rows of the whole batch."""

    def __call__(self, keys: Array) -> Array: ...


@dataclass(frozen=True)
class Independent:
    """Each row by its own key."""

    couples_rows: ClassVar[bool] = False

    def __call__(self, keys: Key[Array, " B"]) -> Float[Array, " B"]:
        return open_uniform(keys)


@dataclass(frozen=True)
class Stratified:
    """One number in each of B arcs of equal length of the circle that (0, 1) is, turned by a common angle.

    Without the turn a row would have the same stratum in every batch (Neyman 1934; k-diffusion's stratified uniform).
    """

    couples_rows: ClassVar[bool] = True

    def __call__(self, keys: Key[Array, " B"]) -> Float[Array, " B"]:
        u = open_uniform(keys)
        turn = open_uniform(jax.vmap(jax.random.fold_in, (0, None))(keys[:1], 1))
        return _wrapped((jnp.arange(len(keys)) + u) / len(keys) + turn)


@dataclass(frozen=True)
class Antithetic:
    """One number for the batch, the others at even distances from it: (u + i / B) mod 1 (Kingma et al. 2021)."""

    couples_rows: ClassVar[bool] = True

    def __call__(self, keys: Key[Array, " B"]) -> Float[Array, " B"]:
        return _wrapped(open_uniform(keys[:1]) + jnp.arange(len(keys)) / len(keys))


def open_uniform(keys: Key[Array, " B"], shape: tuple[int, ...] = ()) -> Float[Array, "B *shape"]:
    """Odd multiples of 2^-24: neither 0 nor 1, at which many a quantile or weight is infinite."""
    return jax.vmap(partial(jax.random.uniform, shape=shape))(keys).astype(jnp.float32) + 2.0**-24


def _wrapped(u: Array) -> Array:
    """u mod 1, without the ends."""
    return jnp.clip(u - jnp.floor(u), 2.0**-24, 1 - 2.0**-24)


def shifted(t: Float[Array, "*shape"], shift: float) -> Float[Array, "*shape"]:
    """The resolution-dependent shift s t / (1 + (s - 1) t) (SD3, equation 23); s = sqrt(pixels / base pixels) > 0.

    Shifts compose by multiplying, and 1 / s undoes s.
    """
    return shift * t / (1 + (shift - 1) * t)
