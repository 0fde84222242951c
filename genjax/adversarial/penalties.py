"""Penalties on a critic's slope: what its loss pays, per row, for gradients of the score by the input.

    gradient penalty    weight * (|grad D(x~)| - target)^2,  x~ = u x + (1 - u) y,  u ~ U[0, 1]    (WGAN-GP)
    Lipschitz penalty   weight * max(0, |grad D(x~)| - 1)^2                                         (WGAN-LP)
    R1, R2              weight * |grad D(x)|^2 at real data x; at generated data y                  (Mescheder et al.)

The gradient of each row comes from one pullback of the sum of all scores, which is right as long as no row of the
critic sees another: no batch normalisation, no minibatch statistics. A row's score is the mean over its patches, if it
has any. Norms run over all of a row's coordinates, in float32 at least.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.adversarial.objectives import wide
from genjax.errors import InputError

__all__ = [
    "R1",
    "R1R2",
    "R2",
    "Critic",
    "GradientPenalty",
    "LipschitzPenalty",
    "NoPenalty",
    "Penalty",
    "Priced",
    "interpolated",
    "safe_sqrt",
    "slopes_between",
    "squared_slopes",
]

Critic = Callable[[Float[Array, "B *shape"]], Float[Array, "B *patches"]]
"""A critic whose parameters (and labels) are fixed: scores of examples, row by row."""


@runtime_checkable
class Penalty(Protocol):
    """Something that is added to the critic's loss, per row: (B,). `keys` are one per row."""

    def __call__(
        self, critic: Critic, real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], keys: Key[Array, " B"]
    ) -> Float[Array, " B"]: ...


@dataclass(frozen=True)
class NoPenalty:
    """Nothing to pay."""

    def __call__(
        self, critic: Critic, real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], keys: Key[Array, " B"]
    ) -> Float[Array, " B"]:
        return jnp.zeros(len(real))


@dataclass(frozen=True)
class Priced:
    """What every penalty has but the one of nothing: a price."""

    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise InputError(f"weight is a price, 0 or more, not {self.weight}")


@dataclass(frozen=True)
class GradientPenalty(Priced):
    """weight * (|grad D| - target)^2 between a real and a generated example (Gulrajani et al. 2017, equation 3).

    On the straight lines along which an optimal plan moves mass, the best 1-Lipschitz critic has slope 1 exactly.
    """

    weight: float = 10.0
    """Price of the squared deviation; the paper's lambda, 10 for images, 0.1 for its points in the plane."""
    target: float = 1.0
    """Slope that costs nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.target < math.inf:
            raise InputError(f"target is a slope, 0 or more, not {self.target}")

    def __call__(
        self, critic: Critic, real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], keys: Key[Array, " B"]
    ) -> Float[Array, " B"]:
        return self.weight * jnp.square(slopes_between(critic, real, fake, keys) - self.target)


@dataclass(frozen=True)
class LipschitzPenalty(Priced):
    """weight * max(0, |grad D| - 1)^2 between a real and a generated example (WGAN-LP, Petzka et al. 2018).

    It forbids slopes above 1 and asks for none: between a random pair, unlike a transported one, the best critic has
    often less. So it can be priced higher than the two-sided penalty (docs/duality.md measures both).
    """

    weight: float = 100.0
    """Price of the squared excess."""

    def __call__(
        self, critic: Critic, real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], keys: Key[Array, " B"]
    ) -> Float[Array, " B"]:
        return self.weight * jnp.square(jax.nn.relu(slopes_between(critic, real, fake, keys) - 1))


@dataclass(frozen=True)
class R1(Priced):
    """weight * |grad D|^2 at real data (Mescheder et al. 2018, equation 9, where weight is gamma / 2)."""

    weight: float = 5.0
    """Price of the squared slope: gamma / 2 of Mescheder, StyleGAN and R3GAN (gamma = 10 here), lambda of MAGVIT."""

    def __call__(
        self, critic: Critic, real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], keys: Key[Array, " B"]
    ) -> Float[Array, " B"]:
        return self.weight * squared_slopes(critic, real)


@dataclass(frozen=True)
class R2(Priced):
    """weight * |grad D|^2 at generated data (Mescheder et al. 2018, equation 10, where weight is gamma / 2)."""

    weight: float = 5.0
    """Price of the squared slope, gamma / 2."""

    def __call__(
        self, critic: Critic, real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], keys: Key[Array, " B"]
    ) -> Float[Array, " B"]:
        return self.weight * squared_slopes(critic, fake)


@dataclass(frozen=True)
class R1R2(Priced):
    """R1 + R2, with which the relativistic game converges locally (R3GAN, Huang et al. 2024)."""

    weight: float = 1.0
    """Price of either squared slope, gamma / 2. R3GAN begins with gamma = 0.05 on CIFAR-10 and 2 on FFHQ-64."""

    def __call__(
        self, critic: Critic, real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], keys: Key[Array, " B"]
    ) -> Float[Array, " B"]:
        return self.weight * (squared_slopes(critic, real) + squared_slopes(critic, fake))


def slopes_between(
    critic: Critic, real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], keys: Key[Array, " B"]
) -> Float[Array, " B"]:
    """|grad D| at one point of each row's line from generated to real, uniform by the row's key."""
    return safe_sqrt(squared_slopes(critic, interpolated(real, fake, jax.vmap(jax.random.uniform)(keys))))


def interpolated(
    real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], shares: Float[Array, " B"]
) -> Float[Array, "B *shape"]:
    """shares * real + (1 - shares) * fake, one share per row."""
    u = shares.reshape(-1, *(1,) * (real.ndim - 1)).astype(real.dtype)
    return u * real + (1 - u) * fake


def squared_slopes(critic: Critic, x: Float[Array, "B *shape"]) -> Float[Array, " B"]:
    """|grad_x D(x)|^2 of each row."""
    scores, pullback = jax.vjp(critic, x)
    patches = scores.size // len(x)
    (gradients,) = pullback(jnp.full_like(scores, 1 / patches))
    return jnp.square(wide(gradients)).sum(axis=tuple(range(1, x.ndim)))


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square root of x >= 0 with derivative 0 at 0, where the true one is infinite.

    A critic of rectifiers is flat where all of them are off; times that infinity, its zero gradient would be nan.
    """
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)
