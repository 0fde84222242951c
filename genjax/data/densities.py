"""Toy densities in the plane: points from a density that is known, so that a model's likelihood can be held against it.

The figures are those by which GANs and flows have been shown since Metz et al. 2017 (arXiv:1611.02163) and Grathwohl et
al. 2019 (FFJORD, arXiv:1810.01367). Each has its exact log-density and its differential entropy,

    h = - integral p(x) log p(x) dx        in nats

which is the least mean negative log-likelihood that any model of it can have.
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
    "Blurred",
    "Checkerboard",
    "Densities",
    "EightGaussians",
    "Modes",
    "Pinwheel",
    "PlaneDensity",
    "PointExample",
    "Rings",
    "TwentyFiveGaussians",
    "TwoMoons",
    "grid_entropy",
]

# Which points are drawn is part of a result: it never follows the seed of a run.
SEEDS = {"train": 0, "test": 1}
# Quadrature nodes lie this many to a standard deviation; Gauss-Legendre nodes are nowhere more than pi/2 as far apart.
# Nodes h apart see a Gaussian of width w with a relative error of 2 exp(-2 pi^2 (w / h)^2).
NODES_PER_NOISE = 3
# Where a Gaussian is cut off, in standard deviations: exp(-9^2 / 2) of it is beyond.
REACH = 9
BLOCK = 4096


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
        yield (
            min(self.points, self.test_points) >= 1,
            f"data.points is {self.points} and data.test_points is {self.test_points}; each must be 1 or more",
        )


# ---------------------------------------------------------------------- Gaussians around a set of centres


@dataclass(frozen=True)
class Blurred(PlaneDensity):
    """Points of a figure, moved by a Gaussian of standard deviation `noise`: p(x) = E_c N(x; c, noise^2).

    The mean over a figure of discrete centres is exact; that over a curve is a quadrature along it, with nodes so dense
    that it errs by less than rounding does.
    """

    noise: float = 0.1
    """Standard deviation of the Gaussian."""

    @abc.abstractmethod
    def centres(self) -> tuple[Float[np.ndarray, "K 2"], Float[np.ndarray, " K"]]:
        """Centres or quadrature nodes, and their weights, which add up to 1."""

    def log_density(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
        """Natural logarithm of the density at points, float64."""
        return _log_mixture(points, *self._centres, self.noise)

    @cached_property
    def entropy(self) -> float:
        """Differential entropy in nats, by the trapezoid rule on a grid of half the noise, which reaches 9 noises."""
        centres = self._centres[0]
        low, high = centres.min(axis=0) - REACH * self.noise, centres.max(axis=0) + REACH * self.noise
        return grid_entropy(self.log_density, low, high, self.noise / 2)

    @cached_property
    def _centres(self) -> tuple[np.ndarray, np.ndarray]:
        return self.centres()

    def _laws(self) -> Iterator[tuple[bool, str]]:
        yield from super()._laws()
        yield (
            0.01 <= self.noise < math.inf,
            f"data.noise is {self.noise}; it must be 0.01 or more, for only what is blurred has a density",
        )


@dataclass(frozen=True)
class TwoMoons(Blurred):
    """Two half circles of radius 1 that reach into one another, as scikit-learn's make_moons has them.

    (cos a, sin a) and (1 - cos a, 1/2 - sin a), a uniform in [0, pi]; the density is a Gauss-Legendre quadrature in a.
    """

    def draw(self, count: int, rng: np.random.RandomState) -> Float[np.ndarray, "count 2"]:
        """Points drawn from the density."""
        return _moon(math.pi * rng.rand(count), rng.randint(2, size=count)) + self.noise * rng.randn(count, 2)

    def centres(self) -> tuple[Float[np.ndarray, "K 2"], Float[np.ndarray, " K"]]:
        """Nodes along both arcs."""
        nodes, weights = np.polynomial.legendre.leggauss(math.ceil(math.pi**2 / 2 / self.noise * NODES_PER_NOISE))
        angles = math.pi / 2 * (nodes + 1)
        return np.concatenate([_moon(angles, 0), _moon(angles, 1)]), np.tile(weights / 4, 2)


def _moon(angles: Float[np.ndarray, " N"], lower) -> Float[np.ndarray, "N 2"]:
    x, y = np.cos(angles), np.sin(angles)
    return np.stack([np.where(lower, 1 - x, x), np.where(lower, 0.5 - y, y)], axis=1)


@dataclass(frozen=True)
class Modes(Blurred):
    """Equal Gaussians around a few centres, the `modes`."""

    @property
    @abc.abstractmethod
    def modes(self) -> Float[np.ndarray, "K 2"]:
        """Their centres."""

    def draw(self, count: int, rng: np.random.RandomState) -> Float[np.ndarray, "count 2"]:
        """Points drawn from the density."""
        return self.modes[rng.randint(len(self.modes), size=count)] + self.noise * rng.randn(count, 2)

    def centres(self) -> tuple[Float[np.ndarray, "K 2"], Float[np.ndarray, " K"]]:
        """The modes, equally likely."""
        return self.modes, np.full(len(self.modes), 1 / len(self.modes))


@dataclass(frozen=True)
class EightGaussians(Modes):
    """Eight Gaussians on a circle; radius and noise are FFJORD's, 4 and 1/2 over the root of 2."""

    noise: float = 0.5 / math.sqrt(2)
    """Standard deviation of each."""
    radius: float = 4 / math.sqrt(2)
    """Radius of the circle."""

    @property
    def modes(self) -> Float[np.ndarray, "8 2"]:
        """Their centres."""
        angles = np.arange(8) * math.pi / 4
        return self.radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


@dataclass(frozen=True)
class TwentyFiveGaussians(Modes):
    """A grid of 5 x 5 Gaussians, on which GANs show how many modes they drop (PacGAN, arXiv:1712.04086)."""

    noise: float = 0.05
    """Standard deviation of each."""
    spacing: float = 2.0
    """Distance of neighbours."""

    @property
    def modes(self) -> Float[np.ndarray, "25 2"]:
        """Their centres, from (-2, -2) to (2, 2) times the spacing."""
        steps = self.spacing * np.arange(-2.0, 3.0)
        return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)


@dataclass(frozen=True)
class Rings(Blurred):
    """Concentric circles, equally likely, each blurred; by default FFJORD's four.

    Around a circle of radius R the mean of the Gaussian is a Bessel function of the distance r from the centre,

        p(x) = exp(-(r^2 + R^2) / 2 noise^2) I_0(r R / noise^2) / 2 pi noise^2
    """

    noise: float = 0.08
    """Standard deviation of the Gaussian."""
    radii: tuple[float, ...] = (0.75, 1.5, 2.25, 3.0)
    """Radius of each circle."""

    def draw(self, count: int, rng: np.random.RandomState) -> Float[np.ndarray, "count 2"]:
        """Points drawn from the density."""
        angles, radii = 2 * math.pi * rng.rand(count), np.array(self.radii)[rng.randint(len(self.radii), size=count)]
        on_circle = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return on_circle + self.noise * rng.randn(count, 2)

    def centres(self) -> tuple[Float[np.ndarray, "K 2"], Float[np.ndarray, " K"]]:
        """Nodes of the trapezoid rule around each circle; the density itself does not need them."""
        counts = [math.ceil(2 * math.pi * max(radius / self.noise, 1) * NODES_PER_NOISE) for radius in self.radii]
        angles = np.concatenate([2 * math.pi * np.arange(count) / count for count in counts])
        radii = np.repeat(self.radii, counts)
        weights = np.concatenate([np.full(count, 1 / count / len(counts)) for count in counts])
        return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1), weights

    def log_density(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
        """Natural logarithm of the density at points, float64, in closed form."""
        # scipy comes with jax, and takes its time to import: only those who want Bessel functions wait for it.
        from scipy.special import i0e

        r, variance = np.linalg.norm(np.asarray(points, np.float64), axis=1)[:, None], self.noise**2
        radii = np.array(self.radii)
        logs = -np.square(r - radii) / (2 * variance) + np.log(i0e(r * radii / variance))
        return _log_sum(logs) - math.log(2 * math.pi * variance * len(radii))

    @cached_property
    def entropy(self) -> float:
        """Differential entropy in nats, by the trapezoid rule along a radius."""
        r = np.arange(0, max(self.radii) + REACH * self.noise, self.noise / 64)
        logs = self.log_density(np.stack([r, np.zeros_like(r)], axis=1))
        return float(-np.trapezoid(2 * math.pi * r * np.exp(logs) * logs, r))

    def _laws(self) -> Iterator[tuple[bool, str]]:
        yield from super()._laws()
        yield (
            len(self.radii) > 0 and min(self.radii) >= 0,
            f"data.radii is {self.radii}; expected one radius or more, none of them negative",
        )


# ---------------------------------------------------------------------- others


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
        return _log_sum(np.stack(logs, axis=1)) - math.log(2 * math.pi * spread.prod() * self.arms)

    def _laws(self) -> Iterator[tuple[bool, str]]:
        yield from super()._laws()
        for name in ("radial", "tangential", "scale", "arms"):
            yield getattr(self, name) > 0, f"data.{name} is {getattr(self, name)}; it must be above 0"


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
        yield self.side > 0, f"data.side is {self.side}; it must be above 0"


def grid_entropy(log_density, low: Float[np.ndarray, "2"], high: Float[np.ndarray, "2"], step: float) -> float:
    """- integral p log p over a rectangle outside of which p vanishes, by the trapezoid rule on a grid."""
    axes = [np.arange(start, stop + step, step) for start, stop in zip(low, high, strict=True)]
    total = 0.0
    for x in axes[0]:
        logs = log_density(np.stack([np.full(len(axes[1]), x), axes[1]], axis=1))
        total -= np.sum(np.exp(logs) * logs)
    return float(total * step**2)


def _log_mixture(points, centres, weights, noise: float) -> Float[np.ndarray, " N"]:
    """log sum_k w_k N(x; c_k, noise^2), a block of points at a time."""
    points = np.asarray(points, np.float64)
    block = max(1, BLOCK * 64 // len(centres))
    logs = []
    for start in range(0, len(points), block):
        squares = sum(np.square(points[start : start + block, None, axis] - centres[:, axis]) for axis in (0, 1))
        logs.append(_log_sum(np.log(weights) - squares / (2 * noise**2)))
    return np.concatenate(logs) - math.log(2 * math.pi * noise**2)


def _log_sum(logs: Float[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    """log sum_k exp, free of overflow."""
    largest = logs.max(axis=1)
    return largest + np.log(np.exp(logs - largest[:, None]).sum(axis=1))
