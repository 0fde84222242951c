"""Dynamic loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

float16 gradients below 6e-8 vanish, so the loss is multiplied by a large scale before the backward pass and gradients
are divided by it after. The scale starts at 2^16; 2,000 steps without overflow double it, an overflow halves it and the
step changes nothing else. It is a part of the state of a run, and every device has the same, as gradients are summed
before they are looked at.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["LossScale", "first_scale", "next_scale"]

FIRST = 2.0**16
LONGEST = 2.0**24
PATIENCE = 2000


class LossScale(NamedTuple):
    """The scale, and the steps since it last changed."""

    value: Float[Array, ""]
    clean: Int[Array, ""]


def first_scale() -> LossScale:
    """The scale before the first step."""
    return LossScale(jnp.float32(FIRST), jnp.int32(0))


def next_scale(scale: LossScale, overflow: Bool[Array, ""]) -> LossScale:
    """The scale after a step whose gradients did or did not overflow; between 1 and 2^24."""
    clean = jnp.where(overflow, 0, scale.clean + 1)
    grown = clean >= PATIENCE
    value = jnp.where(overflow, scale.value / 2, jnp.where(grown, scale.value * 2, scale.value))
    return LossScale(jnp.clip(value, 1.0, LONGEST), jnp.where(grown, 0, clean).astype(jnp.int32))
