"""Densities of blurred figures in the plane: points of a figure, moved by a Gaussian.

    p(x) = E_c N(x; c, noise^2),        c a point of the figure

The mean over a few centres is a mixture of Gaussians, on which GANs show how many modes they drop (Metz et al. 2017,
arXiv:1611.02163); that over a curve is a quadrature, or where there is one a closed form.
"""

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from genjax.data.densities import REACH, PlaneDensity, grid_entropy, log_sum

__all__ = ["Blurred", "EightGaussians", "Modes", "Rings", "TwentyFiveGaussians", "TwoMoons"]

# Quadrature nodes lie this many to a standard deviation; Gauss-Legendre nodes are nowhere more than pi/2 as far apart.
# Nodes h apart see a Gaussian of width w with a relative error of 2 exp(-2 pi^2 (w / h)^2).
NODES_PER_NOISE = 3
BLOCK = 4096


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
            f"noise is {self.noise}; it must be 0.01 or more, and finite, for only what is blurred has a density",
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

    def _laws(self) -> Iterator[tuple[bool, str]]:
        yield from super()._laws()
        yield from self._positive("radius")  # Otherwise there is one mode, and not eight.


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

    def _laws(self) -> Iterator[tuple[bool, str]]:
        yield from super()._laws()
        yield from self._positive("spacing")  # Otherwise there is one mode, and not twenty-five.


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
        return log_sum(logs) - math.log(2 * math.pi * variance * len(radii))

    @cached_property
    def entropy(self) -> float:
        """Differential entropy in nats, by the trapezoid rule along a radius."""
        r = np.arange(0, max(self.radii) + REACH * self.noise, self.noise / 64)
        logs = self.log_density(np.stack([r, np.zeros_like(r)], axis=1))
        return float(-np.trapezoid(2 * math.pi * r * np.exp(logs) * logs, r))

    def _laws(self) -> Iterator[tuple[bool, str]]:
        yield from super()._laws()
        yield (
            len(self.radii) > 0 and all(0 <= radius < math.inf for radius in self.radii),
            f"radii is {self.radii}; expected one radius or more, none of them negative or infinite",
        )


def _log_mixture(points, centres, weights, noise: float) -> Float[np.ndarray, " N"]:
    """log sum_k w_k N(x; c_k, noise^2), a block of points at a time."""
    points = np.asarray(points, np.float64)
    block = max(1, BLOCK * 64 // len(centres))
    logs = []
    for start in range(0, len(points), block):
        squares = sum(np.square(points[start : start + block, None, axis] - centres[:, axis]) for axis in (0, 1))
        logs.append(log_sum(np.log(weights) - squares / (2 * noise**2)))
    return np.concatenate(logs) - math.log(2 * math.pi * noise**2)
