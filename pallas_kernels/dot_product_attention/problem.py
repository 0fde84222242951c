r"""The normal form of an attention problem: what every implementation gets, and what it must give back.

    logits = soft_cap * tanh(scale * query . key / soft_cap) + bias     (without a soft cap: scale * query . key + bias)
    lse    = log(sum over the keys it sees of exp(logits) + exp(sink))
    out    = sum over the keys it sees of exp(logits - lse) value

Operands are a flat dict (see derivatives.py); every array has a leading batch axis of size B or 1:

    query (B,T,N,H)   key (B,S,K,H)   value (B,S,K,V)     K divides N: query head n reads key head n // (N // K)
    bias (#B,#N,#T,#S)   sinks (#B,N)                     optional; # marks an axis that may have size 1
    and the arrays of a `Mask`, under their names there   optional

Outputs are `out` (B,T,N,V) in the dtype of the query, and `lse` (B,T,N), natural logarithm, in float32 (float64 for
float64 queries). A row that sees no key and has no sink gives out = 0, lse = -inf, and all its derivatives are 0.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.mask import ARRAYS, Mask

DIFFERENTIABLE = ("query", "key", "value", "bias", "sinks")


@dataclass(frozen=True)
class Settings:
    """What is static in an attention problem."""

    scale: float
    soft_cap: float | None = None
    left: int | None = None
    """How many positions back a query sees; None: all."""
    right: int | None = None
    """How many positions ahead a query sees; None: all, 0: causal."""


def mask_of(operands: Arrays, settings: Settings) -> Mask:
    """The mask of a problem in normal form."""
    return Mask(**{n: operands[n] for n in ARRAYS if n in operands}, left=settings.left, right=settings.right)


def accumulator(operands: Arrays) -> jnp.dtype:
    """The dtype of logits, sums and log-sum-exp."""
    return jnp.promote_types(operands["query"].dtype, jnp.float32)


def shapes(operands: Arrays, settings: Settings) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and dtypes of (out, lse)."""
    query, value = operands["query"], operands["value"]
    batch, queries, heads, _ = query.shape
    batch = max(x.shape[0] for x in operands.values())
    return (
        jax.ShapeDtypeStruct((batch, queries, heads, value.shape[-1]), query.dtype),
        jax.ShapeDtypeStruct((batch, queries, heads), accumulator(operands)),
    )
