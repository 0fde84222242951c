"""LeCam regularisation: a critic's scores are kept near a running mean of those of the other side.

    weight * (max(0, D(x) - a_F)^2 + max(0, a_R - D(y))^2),    a_R, a_F running means of D(x) and D(y)

(Tseng et al. 2021, arXiv:2104.03310, equations 4 and 5.) With Wasserstein's objective it bounds what is learnt to a
divergence of LeCam's kind; it helps where data is scarce and the critic learns it by heart. It is
rectified, as in their code and in MAGVIT: only real scores above those of drawn rows pay, and drawn ones below those of
real rows.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.adversarial.objectives import Scores, per_row, wide
from genjax.errors import InputError

__all__ = ["LeCam"]

Anchors = dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class LeCam:
    """What a critic pays for scores far from its anchors, {"real": a_R, "fake": a_F}, which are variables."""

    weight: float = 0.001
    """Price; 0 for none."""
    decay: float = 0.999
    """Memory of the running means."""

    def __post_init__(self):
        if not 0 <= self.weight < math.inf:
            raise InputError(f"weight of LeCam is a price, 0 or more, not {self.weight}")
        if not 0 <= self.decay < 1:
            raise InputError(f"decay of LeCam lies in [0, 1), not at {self.decay}")

    def initial(self) -> Anchors:
        """Anchors at 0."""
        return {"real": jnp.zeros(()), "fake": jnp.zeros(())}

    def __call__(self, real_scores: Scores, fake_scores: Scores, anchors: Anchors) -> Float[Array, " B"]:
        """What each row pays; the anchors are constants."""
        real, fake = (jax.lax.stop_gradient(anchors[name]) for name in ("real", "fake"))
        above, below = jax.nn.relu(wide(real_scores) - fake), jax.nn.relu(real - wide(fake_scores))
        return self.weight * per_row(above**2 + below**2)

    def advance(self, anchors: Anchors, means: Anchors) -> Anchors:
        """The anchors after a step in which these were the mean scores."""
        return {name: self.decay * anchors[name] + (1 - self.decay) * means[name] for name in anchors}
