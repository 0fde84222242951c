"""Toy densities in the plane: points from a density that is known, so that a model's likelihood can be held against it.

The figures are those by which GANs and flows have been shown since Metz et al. 2017 (arXiv:1611.02163) and Grathwohl et
al. 2019 (FFJORD, arXiv:1810.01367). Each has its exact log-density and its differential entropy,

    h = - integral p(x) log p(x) dx        in nats

which is the least mean negative log-likelihood that any model of it can have. Those that are figures blurred by a
Gaussian are in `blurred.py`.
"""

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypedDict

import numpy as np
from jaxtyping import Float

from genjax.data.examples import Dataset, Examples, Split
from genjax.errors import InputError

__all__ = [
    "Checkerboard",
    "Densities",
    "Pinwheel",
    "PlaneDensity",
    "PointExample",
    "grid_entropy",
    "log_sum",
]

# Which points are drawn is part of a result: it never follows the seed of a run.
SEEDS = {"train": 0, "test": 1}
# Where a Gaussian is cut off, in standard deviations: exp(-9^2 / 2) of it is beyond.
REACH = 9


class PointExample(TypedDict):
    """One point of the plane."""

    point: np.ndarray
    """float32 (2,)."""


class Densities(Dataset[PointExample], Protocol):
    """A dataset of points of the plane, drawn from a density that is known."""

    def log_density(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
        """Natural logarithm of the density at points."""

    @property
    def entropy(self) -> float:
        """Differential entropy in nats."""


@dataclass(frozen=True)
class PlaneDensity(abc.ABC):
    """A probability density on the plane, and points drawn from it."""

    points: int = 50_000
    """Number of training points."""
    test_points: int = 10_000
    """Number of test points, drawn independently of the training points."""

    def __post_init__(self):
        for holds, sentence in self._laws():
            if not holds:
                raise InputError(f"{sentence}.")

    def source(self, split: Split) -> Examples[PointExample]:
        """Random access to the points of a split, which are the same every time."""
        points = self._points(split)
        return Examples(range(len(points)), lambda row: PointExample(point=points[row]))

    def _points(self, split: Split) -> np.ndarray:
        count = self.points if split == "train" else self.test_points
        points = self.draw(count, np.random.RandomState(SEEDS[split])).astype(np.float32)
        points.setflags(write=False)
        return points

    @abc.abstractmethod
    def draw(self, count: int, rng: np.random.RandomState) -> Float[np.ndarray, "count 2"]:
        """Points drawn from the density. numpy promises that RandomState never changes its stream."""

    @abc.abstractmethod
    def log_density(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
        """Natural logarithm of the density at points, float64."""

    @property
    @abc.abstractmethod
    def entropy(self) -> float:
        """Differential entropy in nats."""

    def _laws(self) -> Iterator[tuple[bool, str]]:
        for name in ("points", "test_points"):
            yield getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be 1 or more"

    def _positive(self, *names: str) -> Iterator[tuple[bool, str]]:
        """The law that these fields are positive numbers."""
        for name in names:
            yield 0 < getattr(self, name) < math.inf, f"{name} is {getattr(self, name)}; it must be above 0, and finite"


@dataclass(frozen=True)
class Pinwheel(PlaneDensity):
    """Five arms that bend (Johnson et al. 2016, arXiv:1603.06277), of FFJORD's proportions.

    Each arm is a Gaussian around (1, 0) with standard deviations `radial` and `tangential`, turned by its share of the
    circle and then by the angle `rate` exp(|x|). The original turns by rate exp(x_1), of which the inverse has no
    closed form; a turn by the distance from the centre is undone by turning back, and keeps areas, so that the density
    at a point is that of the straight arms at the point turned back. The two figures can hardly be told apart.
    """

    radial: float = 0.3
    """Standard deviation along an arm."""
    tangential: float = 0.1
    """Standard deviation across an arm."""
    arms: int = 5
    """Number of arms."""
    rate: float = 0.25
    """How much the arms bend."""
    scale: float = 2.0
    """Factor by which the whole is larger than said above."""

    def draw(self, count: int, rng: np.random.RandomState) -> Float[np.ndarray, "count 2"]:
        """Points drawn from the density."""
        straight = rng.randn(count, 2) * [self.radial, self.tangential] + [1, 0]
        turned = _turned(straight, 2 * math.pi / self.arms * rng.randint(self.arms, size=count))
        return self.scale * _turned(turned, self.rate * np.exp(np.linalg.norm(turned, axis=1)))

    def log_density(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
        """Natural logarithm of the density at points, float64, in closed form."""
        points = np.asarray(points, np.float64) / self.scale
        straight = _turned(points, -self.rate * np.exp(np.linalg.norm(points, axis=1)))
        return self._straight_log_density(straight) - 2 * math.log(self.scale)

    @cached_property
    def entropy(self) -> float:
        """Differential entropy in nats: that of the straight arms by the trapezoid rule, and the scale's."""
        far = np.full(2, 1 + REACH * max(self.radial, self.tangential))
        step = min(self.radial, self.tangential) / 2
        return grid_entropy(self._straight_log_density, -far, far, step) + 2 * math.log(self.scale)

    def _straight_log_density(self, points: np.ndarray) -> np.ndarray:
        spread = np.array([self.radial, self.tangential])
        arms = [_turned(points, np.full(len(points), -2 * math.pi * arm / self.arms)) for arm in range(self.arms)]
        logs = [-np.square((arm - [1, 0]) / spread).sum(axis=1) / 2 for arm in arms]
        return log_sum(np.stack(logs, axis=1)) - math.log(2 * math.pi * spread.prod() * self.arms)

    def _laws(self) -> Iterator[tuple[bool, str]]:
        yield from super()._laws()
        yield from self._positive("radial", "tangential", "scale", "arms")
        yield math.isfinite(self.rate), f"rate is {self.rate}; it must be finite"


def _turned(points: Float[np.ndarray, "N 2"], angles: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
    """Each point turned by its angle about the origin."""
    cos, sin, (x, y) = np.cos(angles), np.sin(angles), points.T
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)


@dataclass(frozen=True)
class Checkerboard(PlaneDensity):
    """Uniform on every other field of a board of 4 x 4 fields around the origin; the lower left field has points."""

    side: float = 2.0
    """Side of a field."""

    def draw(self, count: int, rng: np.random.RandomState) -> Float[np.ndarray, "count 2"]:
        """Points drawn from the density, none on a border, not even when they are rounded to float32."""
        column, row = rng.randint(4, size=count), rng.randint(2, size=count)
        fields = np.stack([column, 2 * row + column % 2], axis=1)
        within = (rng.randint(2**16, size=(count, 2)) + 0.5) / 2**16
        return self.side * (fields + within - 2)

    def log_density(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
        """Natural logarithm of the density at points, float64: -entropy on the fields, -inf elsewhere."""
        fields = np.floor(np.asarray(points, np.float64) / self.side).astype(np.int64)
        occupied = (np.abs(fields + 0.5) < 2).all(axis=1) & (fields.sum(axis=1) % 2 == 0)
        return np.where(occupied, -self.entropy, -math.inf)

    @property
    def entropy(self) -> float:
        """Differential entropy in nats: the logarithm of the area of the 8 fields."""
        return math.log(8 * self.side**2)

    def _laws(self) -> Iterator[tuple[bool, str]]:
        yield from super()._laws()
        yield from self._positive("side")


def grid_entropy(log_density, low: Float[np.ndarray, "2"], high: Float[np.ndarray, "2"], step: float) -> float:
    """- integral p log p over a rectangle outside of which p vanishes, by the trapezoid rule on a grid."""
    axes = [np.arange(start, stop + step, step) for start, stop in zip(low, high, strict=True)]
    total = 0.0
    for x in axes[0]:
        logs = log_density(np.stack([np.full(len(axes[1]), x), axes[1]], axis=1))
        total -= np.sum(np.exp(logs) * logs)
    return float(total * step**2)


def log_sum(logs: Float[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    """log sum_k exp, free of overflow."""
    largest = logs.max(axis=1)
    return largest + np.log(np.exp(logs - largest[:, None]).sum(axis=1))
