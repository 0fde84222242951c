r"""Rotary positions: queries and keys are turned by angles that grow with the position of their token.

    angle_i(p) = p theta^(-2i / H),   i = 0 .. H/2 - 1                    (RoFormer, Su et al. 2021, arXiv:2104.09864)

so that the product of a query at position p and a key at position q depends on p - q only. Angles are in float32
whatever the network computes in: bfloat16 does not tell position 257 from 256. The arithmetic is in the kernels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.neighbours.rotary import angles as angles
from pallas_kernels.neighbours.rotary import rotary as rotary

__all__ = ["positions_in_segments"]


def positions_in_segments(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions of packed rows: they start at 0 with every new segment, which is a run of one id."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    starts = segments != jnp.pad(segments, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
