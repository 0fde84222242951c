"""Grids: at which times a solver stops on its way from noise (t = 1) to data (t = 0).

A grid gives steps + 1 times, float64 and strictly falling. With s = sigma / alpha and N steps, i = 0, ..., N,

    UniformTimes    t_i = 1 - i / N
    ShiftedTimes    shift t / (1 + (shift - 1) t) of these                         Esser et al. 2024, equation 23
    SD3Times        the tables of the released SD3 code, as published or corrected
    KarrasSigmas    s^(1 / rho) evenly spaced, then 0                              Karras et al. 2022, equation 5
    UniformLogSNR   log(alpha / sigma) evenly spaced, then 0                       Lu et al. 2022, section 3.4
    ChainTimes      steps of DDPM's chain, respaced                                Nichol and Dhariwal 2021, section 4
    GivenTimes      a table of one's own

(arXiv:2403.03206, 2206.00364, 2206.00927, 2102.09672.)
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from genjax.diffusion.process import Process, log_snr, time_of_log_snr
from genjax.diffusion.processes import DDPM
from genjax.diffusion.solvers.integrate import check_times
from genjax.diffusion.times import shifted
from genjax.errors import InputError

__all__ = [
    "ChainTimes",
    "GivenTimes",
    "Grid",
    "KarrasSigmas",
    "SD3Times",
    "ShiftedTimes",
    "UniformLogSNR",
    "UniformTimes",
    "grid_times",
]


@runtime_checkable
class Grid(Protocol):
    """A way to lay `steps` steps from noise to data."""

    def grid(self, process: Process, steps: int) -> np.ndarray:
        """steps + 1 times, float64, strictly falling, in [0, 1]. Raises InputError where there are none."""


def grid_times(grid: Grid, process: Process, steps: int) -> Float[np.ndarray, " times"]:
    """The steps + 1 times of a grid, float64, which fall strictly as float32 too, in which solvers take them.

    Raises InputError where the grid has none for this process, or its times meet in float32.
    """
    times = np.asarray(grid.grid(process, steps), np.float64)
    rounded = times.astype(np.float32)
    falls = bool((np.diff(rounded) < 0).all()) and rounded[-1] >= 0 and rounded[0] <= 1
    if len(times) != steps + 1 or not falls:
        raise InputError(
            f"the times of {grid} with {type(process).__name__} do not fall strictly in [0, 1] as float32 numbers, for"
            f" {steps} steps: take fewer, or a narrower range"
        )
    return times


@dataclass(frozen=True)
class UniformTimes:
    """Evenly spaced times."""

    first: float = 1.0
    """Where the path begins, in (0, 1]: below 1 where a process has no data in its noise and a solver needs some."""
    last: float = 0.0
    """Where it ends: above 0 where a process leaves the data too steeply for a solver (Song et al. 2021 take 1e-3)."""

    def __post_init__(self):
        if not 0 <= self.last < self.first <= 1:
            raise InputError(f"last and first of a grid are 0 <= last < first <= 1, not {self.last} and {self.first}")

    def grid(self, process: Process, steps: int) -> Float[np.ndarray, " times"]:
        return np.linspace(self.first, self.last, _checked(steps) + 1)


@dataclass(frozen=True)
class ShiftedTimes:
    """Evenly spaced times, shifted towards noise for high resolutions."""

    shift: float = 3.0
    """s = sqrt(pixels / base pixels), positive; 1 is none."""

    def __post_init__(self):
        _check_shift(self.shift)

    def grid(self, process: Process, steps: int) -> Float[np.ndarray, " times"]:
        return shifted(np.linspace(1.0, 0.0, _checked(steps) + 1), self.shift)


@dataclass(frozen=True)
class SD3Times:
    """The table of the released SD3 code and of diffusers, which ends its even spacing at 1/1000, and not at 0.

    As published, it stores its smallest time after shifting and shifts the grid again (0.00893 before 0, of 28 steps
    at a shift of 3). Corrected, the grid is shifted once (0.00299).
    """

    shift: float = 3.0
    """s = sqrt(pixels / base pixels), positive; 1 is none, and then the two are one."""
    corrected: bool = False
    """Shift once, as the paper has it, and not twice, as the released code does."""

    def __post_init__(self):
        _check_shift(self.shift)

    def grid(self, process: Process, steps: int) -> Float[np.ndarray, " times"]:
        smallest = 1 / 1000 if self.corrected else shifted(1 / 1000, self.shift)
        return np.append(shifted(np.linspace(1.0, smallest, _checked(steps)), self.shift), 0.0)


@dataclass(frozen=True)
class KarrasSigmas:
    """EDM's grid: steps that shrink towards the data by a power of the noise level s = sigma / alpha."""

    rho: float = 7.0
    """The power, positive; 1 is even in s, and infinity would be even in its logarithm."""
    s_min: float = 0.002
    """The last noise level before 0 or, of a process that starts from data with more noise, that noise."""
    s_max: float | None = None
    """The first noise level; the process' own at t = 1 when not given."""

    def __post_init__(self):
        if not 0 < self.rho < math.inf:
            raise InputError(f"rho of KarrasSigmas is positive and finite, not {self.rho}")
        _check_noise(self)

    def grid(self, process: Process, steps: int) -> Float[np.ndarray, " times"]:
        power = 1 / self.rho
        return _by_noise(self, process, steps, lambda s: s**power, lambda u: u**self.rho)


@dataclass(frozen=True)
class UniformLogSNR:
    """Steps of equal log-SNR log(alpha / sigma), and a last one to the data."""

    s_min: float = 0.002
    """The last noise level sigma / alpha before 0 or, of a process that starts from more noise, that noise."""
    s_max: float | None = None
    """The first noise level; the process' own at t = 1 when not given."""

    def __post_init__(self):
        _check_noise(self)

    def grid(self, process: Process, steps: int) -> Float[np.ndarray, " times"]:
        return _by_noise(self, process, steps, np.log, np.exp)


@dataclass(frozen=True)
class ChainTimes:
    """Steps of the chain of a DDPM, respaced as in its implementations."""

    spacing: Literal["leading", "linspace", "trailing"] = "trailing"
    """Which steps of the chain are kept."""

    def grid(self, process: Process, steps: int) -> Float[np.ndarray, " times"]:
        if not isinstance(process, DDPM):
            raise InputError(f"ChainTimes are steps of the chain of a DDPM, and {type(process).__name__} has none")
        return process.times(_checked(steps), self.spacing)


@dataclass(frozen=True)
class GivenTimes:
    """A table of times."""

    times: tuple[float, ...] = (1.0, 0.0)
    """Strictly falling, in [0, 1]; one more than there are steps."""

    def __post_init__(self):
        check_times(np.asarray(self.times))
        if self.times[0] < self.times[-1]:
            raise InputError(f"the times of a grid fall, from noise to data, and these rise to {self.times[-1]:g}")

    def grid(self, process: Process, steps: int) -> Float[np.ndarray, " times"]:
        if steps != len(self.times) - 1:
            raise InputError(f"GivenTimes has {len(self.times)} times, for {len(self.times) - 1} steps, not {steps}")
        return np.asarray(self.times, np.float64)


def _checked(steps: int) -> int:
    if steps < 1:
        raise InputError(f"the number of steps of a grid is at least 1, not {steps}")
    return steps


def _check_shift(shift: float) -> None:
    if not 0 < shift < math.inf:
        raise InputError(f"shift of a grid of times is positive and finite, not {shift}")


def _check_noise(kind: KarrasSigmas | UniformLogSNR) -> None:
    for name in ("s_min", "s_max"):
        level = getattr(kind, name)
        if level is not None and not 0 < level < math.inf:
            raise InputError(f"{name} of {type(kind).__name__} is positive and finite, not {level}")


def _by_noise(kind: KarrasSigmas | UniformLogSNR, process: Process, steps: int, scale, inverse) -> np.ndarray:
    """`steps` noise levels s = sigma / alpha that are evenly spaced on a scale, as times, and data last."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        least, most = (float(np.exp(-log_snr(process, np.float64(t)))) for t in (0.0, 1.0))
        last, first = max(kind.s_min, least), most if kind.s_max is None else kind.s_max
        name = type(kind).__name__
        if not np.isfinite(first):
            raise InputError(f"{name} needs s_max with {type(process).__name__}, which ends in nothing but noise")
        if not 0 < last < first <= most * (1 + 1e-12):
            raise InputError(
                f"the noise levels of {name} are 0 < s_min < s_max <= {most:.4g}, that of {type(process).__name__}"
                f" at t = 1, not {last:g} and {first:g}"
            )
        count = _checked(steps) + (least == last)  # where t = 0 is one of them, nothing comes after it
        levels = inverse(np.linspace(scale(first), scale(last), count))
        times = np.asarray(time_of_log_snr(process, -np.log(levels)))
    times = np.append(times[:-1] if least == last else times, 0.0)
    times[0] = 1.0 if first == most else times[0]
    return times
