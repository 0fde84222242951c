"""The games of adversarial training: what a critic D and a generator G each lose by the scores D gives.

A score is a logit, unbounded; where a formula has a probability it is sigmoid(D). With real data x ~ p and generated
data y ~ q, the critic lowers E[critic's loss] and the generator E[generator's loss]:

    objective       critic's loss                        generator's loss      at the best critic G lowers
    Minimax         -log s(D(x)) - log(1 - s(D(y)))      log(1 - s(D(y)))      2 JS(p, q) - log 4
    NonSaturating   the same                             -log s(D(y))          (another gradient, the same aim)
    Hinge           max(0, 1 - D(x)) + max(0, 1 + D(y))  -D(y)                 the total variation
    LeastSquares    (D(x) - b)^2/2 + (D(y) - a)^2/2      (D(y) - c)^2/2        Pearson's chi^2, for fitting a, b, c
    Wasserstein     D(y) - D(x), D 1-Lipschitz           -D(y)                 the Wasserstein distance W1(p, q)
    Relativistic    -log s(D(x) - D(y))                  -log s(D(y) - D(x))

Row i of a batch pairs one real with one generated example. All losses are softplus, max or squares of the scores, so
none overflows: -log s(D) = softplus(-D) and -log(1 - s(D)) = softplus(D).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = [
    "Hinge",
    "LeastSquares",
    "Minimax",
    "NonSaturating",
    "Objective",
    "Relativistic",
    "Scores",
    "Wasserstein",
    "per_row",
    "wide",
]

Scores = Float[Array, "B *patches"]
"""A critic's scores of B examples: one each, or one per patch of each (PatchGAN)."""


@runtime_checkable
class Objective(Protocol):
    """A game: two losses per row, (B,), in float32 at least; scores of patches are averaged after the loss."""

    def critic(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        """What the critic lowers."""

    def generator(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        """What the generator lowers; terms that do not depend on it are left out."""


@dataclass(frozen=True)
class Minimax:
    """The zero-sum game (Goodfellow et al. 2014, equation 1): the generator lowers E log(1 - sigmoid(D(y))).

    Its gradient vanishes where the critic is sure that y is generated: the game "saturates".
    """

    def critic(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(jax.nn.softplus(-wide(real_scores)) + jax.nn.softplus(wide(fake_scores)))

    def generator(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(-jax.nn.softplus(wide(fake_scores)))


@dataclass(frozen=True)
class NonSaturating:
    """Minimax's critic, and a generator that raises E log sigmoid(D(y)) (Goodfellow et al. 2014, section 3)."""

    def critic(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return Minimax().critic(real_scores, fake_scores)

    def generator(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(jax.nn.softplus(-wide(fake_scores)))


@dataclass(frozen=True)
class Hinge:
    """The hinge game (Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17). VQGAN halves the critic's loss."""

    def critic(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(jax.nn.relu(1 - wide(real_scores)) + jax.nn.relu(1 + wide(fake_scores)))

    def generator(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(-wide(fake_scores))


@dataclass(frozen=True)
class LeastSquares:
    """Least squares (LSGAN, Mao et al. 2017, equation 2); the defaults are its 0-1 coding, equation 9.

    With b - c = 1 and b - a = 2 (say a = -1, b = 1, c = 0) the generator lowers Pearson's chi^2 of p + q from 2q.
    """

    a: float = 0.0
    """What the critic should say of generated data."""
    b: float = 1.0
    """What the critic should say of real data."""
    c: float = 1.0
    """What the generator wants the critic to say of generated data."""

    def critic(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(jnp.square(wide(real_scores) - self.b) / 2 + jnp.square(wide(fake_scores) - self.a) / 2)

    def generator(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(jnp.square(wide(fake_scores) - self.c) / 2)


@dataclass(frozen=True)
class Wasserstein:
    """Minus the dual estimate of W1 (WGAN, Arjovsky et al. 2017, equation 2), for a critic kept near 1-Lipschitz.

    The critic's loss is -W, so that W, its negative, is what falls as the generator learns.
    """

    def critic(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(wide(fake_scores) - wide(real_scores))

    def generator(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(-wide(fake_scores))


@dataclass(frozen=True)
class Relativistic:
    """Each example against its pair (RpGAN, Jolicoeur-Martineau 2018; R3GAN, Huang et al. 2024).

    Only differences of scores count. A critic that separates all real from all generated data by one threshold pulls
    dropped modes no more than others; pairs make every real example want generated ones near it (Sun et al. 2020).
    """

    def critic(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(jax.nn.softplus(wide(fake_scores) - wide(real_scores)))

    def generator(self, real_scores: Scores, fake_scores: Scores) -> Float[Array, " B"]:
        return per_row(jax.nn.softplus(wide(real_scores) - wide(fake_scores)))


def wide(scores: Scores) -> Scores:
    """In float32 at least: half precision has too few digits for a loss."""
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


def per_row(losses: Scores) -> Float[Array, " B"]:
    """The mean over whatever patches a row has."""
    return losses.mean(axis=tuple(range(1, losses.ndim)))
