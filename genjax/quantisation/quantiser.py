"""What every quantiser is: a map from vectors to codes of a finite set, and what it takes to learn the set.

    quantised  = quantiser(z, params, variables)           codes, ids, losses per position, statistics as sums
    variables  = quantiser.advance(variables, statistics)  once per step, of sums over the whole batch
    code       = quantiser.codes(ids, params, variables)   what a decoder sees of ids alone

`params` are learned by gradients, `variables` are state without one; either may be empty. A vector is a row of the last
axis, and all other axes are positions. Losses are per position and statistics are sums, so that every figure and every
gradient is the same however a batch is split into devices and micro-batches.

The choice of a code has no derivative. Two estimates of one stand in for it, both of which leave the code as it is:

    straight_through    d code / d z = I                                (Bengio et al. 2013, arXiv:1308.3432)
    rotated             d code / d z = (|q| / |z|) R, R z/|z| = q/|q|   (Fifty et al. 2024, arXiv:2410.06424)

where R is the rotation in the plane of z and its code q. Both read z and q as constants within the estimate.
"""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.errors import InputError

__all__ = [
    "ESTIMATES",
    "Estimate",
    "Quantised",
    "Quantiser",
    "Vectors",
    "direction",
    "rotated",
    "straight_through",
    "wide",
]

Vectors = Float[Array, "*N D"]
"""One vector per position."""
Estimate = Literal["straight_through", "rotated"]
"""By which gradient a network learns through the choice of a code."""


class Quantised(NamedTuple):
    """What a quantiser says of vectors (*N, D)."""

    z_q: Float[Array, "*N D"]
    """The codes, with the estimate of their gradient by z."""
    ids: Int[Array, "*N"] | Int[Array, "*N Q"]
    """Their numbers, in [0, size); Q of them where a code is a sum of Q."""
    losses: dict[str, Float[Array, "*N"]]
    """What each position adds to the loss, weighted, by name."""
    statistics: PyTree[Array] = {}
    """What `advance` needs, as sums over the positions."""


@runtime_checkable
class Quantiser(Protocol):
    """A kind of quantiser. `size` is the number of ids, `width` that of a vector's coordinates, D."""

    @property
    def size(self) -> int:
        """Ids are in [0, size)."""

    @property
    def width(self) -> int:
        """Coordinates of a vector."""

    @property
    def ids_per_position(self) -> int:
        """How many ids a vector has, each in [0, size): more than one where a code is a sum."""

    def init(self, key: Key[Array, ""]) -> tuple[PyTree[Array], PyTree[Array]]:
        """Fresh params and variables."""

    def __call__(self, z: Vectors, params: PyTree[Array], variables: PyTree[Array]) -> Quantised:
        """The codes of z."""

    def codes(self, ids: Int[Array, "..."], params: PyTree[Array], variables: PyTree[Array]) -> Vectors:
        """The codes of these ids."""

    def advance(self, variables: PyTree[Array], statistics: PyTree[Array]) -> PyTree[Array]:
        """The variables after a step with these statistics."""


def straight_through(z: Vectors, q: Vectors) -> Vectors:
    """q, whose derivative by z is the identity."""
    return jax.lax.stop_gradient(q) + (z - jax.lax.stop_gradient(z))


def rotated(z: Vectors, q: Vectors) -> Vectors:
    """q, whose derivative by z is |q| / |z| times the rotation that turns z into the direction of q.

    With unit vectors a of z and b of q and r = (a + b) / |a + b| it is R = I - 2 r r^T + 2 b a^T. Where z or q is
    nearly zero, or they point in opposite directions, no rotation is singled out, and the identity stands in.
    """
    z_fixed, q = jax.lax.stop_gradient(z), jax.lax.stop_gradient(q)
    a, b = direction(z_fixed), direction(q)
    r = direction(a + b)
    length_z, length_q = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (z_fixed, q))
    along_r, along_a = (jnp.sum(z * unit, axis=-1, keepdims=True) for unit in (r, a))
    turned = (z - 2 * r * along_r + 2 * b * along_a) * length_q / jnp.where(length_z > 0, length_z, 1)
    directions = [jnp.any(unit != 0, axis=-1, keepdims=True) for unit in (a, b, r)]
    singled_out = directions[0] & directions[1] & directions[2]
    through = jnp.where(singled_out, turned, z)
    return q + (through - jax.lax.stop_gradient(through))


ESTIMATES = {"straight_through": straight_through, "rotated": rotated}
"""By name: functions of (z, q)."""


def direction(x: Vectors) -> Vectors:
    """x / |x| along the last axis, and zero where x is nearly zero; its gradient is finite everywhere."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    long = square > 1e-12
    return jnp.where(long, x * jax.lax.rsqrt(jnp.where(long, square, 1)), 0)


def wide(z: Vectors, quantiser: Quantiser) -> Vectors:
    """The vectors in float32 at least: sums of bfloat16 stop growing at 256. Raises InputError for another width."""
    if z.shape[-1] != quantiser.width:
        kind = type(quantiser).__name__
        raise InputError(f"{kind} takes vectors of {quantiser.width} coordinates, not of {z.shape[-1]}")
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))
