r"""Rotary position embedding of queries and keys, after an optional RMSNorm of each head, in one pass.

    n        = x / sqrt(mean(x^2) + epsilon) * weight                    qk-norm, over the width H of a head (optional)
    (a', b') = (a cos - b sin, a sin + b cos)                            for every pair (a, b) among the first R numbers

with one angle for each token and pair (RoFormer, Su et al. 2021, arXiv:2104.09864, equation 34), so that the product of
a query at position i and a key at position j depends on i - j only. Pairs are laid out in one of two ways:

    interleaved      (x_0, x_1), (x_2, x_3), ...            RoFormer, GPT-J, FLUX
    halves           (x_0, x_{R/2}), (x_1, x_{R/2+1}), ...  GPT-NeoX, Llama

and the numbers after the first R pass as they are (partial rotary embedding of GPT-NeoX). All arithmetic is in float32
(float64 for float64); results have the dtype of their operands. The transpose of a rotation is the rotation back, after
which, with u = weight * (the gradient turned back), r = 1 / sqrt(...) and m = x r, the gradient goes through the norm:

    dx = r (u - m mean(u m)),        dweight = sum over tokens and heads of (the gradient turned back) * m
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.derivatives import Arrays, Fused, Rules
from pallas_kernels.neighbours.implementation import Implementation, array_obstacle, choose
from pallas_kernels.neighbours.recomputed import recomputed

Layout = Literal["interleaved", "halves"]

WIDEST = 512
"""Widest head that the Triton form takes."""


@dataclass(frozen=True)
class Settings:
    """What is static in a rotary embedding."""

    layout: Layout
    norm: bool
    epsilon: float


def rotary(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    cos: Float[Array, "#B T R/2"],
    sin: Float[Array, "#B T R/2"],
    *,
    layout: Layout,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"]]:
    """Queries and keys with the first R numbers of every head rotated, in their dtypes.

    Raises ValueError where shapes disagree or R > H, NotImplementedError where `implementation` cannot do it.
    """
    return _rotary(query, key, cos, sin, {}, Settings(layout, False, 0.0), implementation)


def qk_norm_rotary(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    cos: Float[Array, "#B T R/2"],
    sin: Float[Array, "#B T R/2"],
    query_weight: Float[Array, " H"] | None = None,
    key_weight: Float[Array, " H"] | None = None,
    *,
    layout: Layout,
    epsilon: float = 1e-6,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"]]:
    """`rotary` of the RMSNorms of queries and keys, each over its own head and with its own weight (None: 1)."""
    weights = {"query_weight": query_weight, "key_weight": key_weight}
    return _rotary(query, key, cos, sin, weights, Settings(layout, True, epsilon), implementation)


def angles(
    positions: Float[Array, "*batch"], width: int, *, theta: float = 10_000.0
) -> tuple[Float[Array, "*batch width/2"], Float[Array, "*batch width/2"]]:
    """(cos, sin) in float32 of position * theta^(-2 i / width) for the pairs i < width / 2 (RoFormer, equation 15).

    With several axes of position (rows, columns, frames) concatenate the tables of each along the last axis.
    """
    frequencies = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = jnp.asarray(positions, jnp.float32)[..., None] * frequencies
    return jnp.cos(angle), jnp.sin(angle)


def _rotary(query, key, cos, sin, weights, settings, implementation):
    batch, tokens, _, width = query.shape
    if key.shape[:2] != (batch, tokens) or key.shape[-1] != width:
        raise ValueError(f"key has shape {key.shape}, accepted is ({batch}, {tokens}, any number of heads, {width})")
    if settings.layout not in ("interleaved", "halves"):
        raise ValueError(f"layout is {settings.layout!r}, accepted are 'interleaved' and 'halves'")
    for name, table in {"cos": cos, "sin": sin}.items():
        if table.ndim != 3 or table.shape[0] not in (1, batch) or table.shape[1] != tokens or table.shape != cos.shape:
            raise ValueError(
                f"{name} has shape {table.shape}, accepted is (1 or {batch}, {tokens}, R/2), one shape for both"
            )
    if not 2 <= 2 * cos.shape[-1] <= width:
        raise ValueError(f"cos and sin rotate R = {2 * cos.shape[-1]} numbers of a head of {width}")
    operands = {"query": query, "key": key, "cos": cos, "sin": sin}
    for name, weight in weights.items():
        if weight is not None:
            if weight.shape != (width,):
                raise ValueError(f"{name} has shape {weight.shape}, accepted is ({width},)")
            operands[name] = weight[None]

    obstacle = array_obstacle(*operands.values())
    if width > WIDEST:
        obstacle = f"heads wider than {WIDEST}"
    implementation = choose(implementation, obstacle)
    return tuple(_FUSED(operands, settings, implementation))


# The normal form: query (1|B,T,N,H), key (1|B,T,K,H), cos and sin (1|B,T,R/2), weights (1|B,H).


def _shapes(operands: Arrays, settings: Settings) -> list[jax.ShapeDtypeStruct]:
    batch = max(x.shape[0] for x in operands.values())
    rotated = [operands["query"], operands["key"]]
    return [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in rotated]


def _forward(operands: Arrays, settings: Settings) -> list[jax.Array]:
    turned = []
    for name, out in zip(("query", "key"), _shapes(operands, settings), strict=True):
        x, weight, cos, sin = _wide(name, operands)
        if settings.norm:
            x = x * _inverse_rms(x, settings) * weight
        turned.append(jnp.broadcast_to(_rotate(x, cos, sin, settings.layout), out.shape).astype(out.dtype))
    return turned


def _backward(cotangents, operands: Arrays, outputs, wanted: tuple[str, ...], settings: Settings) -> Arrays:
    if {"cos", "sin"} & set(wanted):
        return recomputed(_forward).backward(cotangents, operands, outputs, wanted, settings)
    found = {}
    for name, cotangent in zip(("query", "key"), cotangents, strict=True):
        x, weight, cos, sin = _wide(name, operands)
        moved = _rotate(cotangent.astype(x.dtype), cos, -sin, settings.layout)
        if settings.norm:
            inverse = _inverse_rms(x, settings)
            m = x * inverse
            if f"{name}_weight" in wanted:
                found[f"{name}_weight"] = (moved * m).sum((1, 2))
            moved = moved * weight
            moved = inverse * (moved - m * (moved * m).mean(-1, keepdims=True))
        found[name] = moved
    return {name: _summed(found[name], operands[name]) for name in wanted}


def _wide(name: str, operands: Arrays) -> tuple[jax.Array, ...]:
    """(queries or keys, their weight or 1, cos, sin) in the dtype of arithmetic, with an axis of heads."""
    dtype = jnp.promote_types(operands[name].dtype, jnp.float32)
    weight = operands.get(f"{name}_weight", jnp.ones((1, 1)))
    cos, sin = (operands[table].astype(dtype)[:, :, None, :] for table in ("cos", "sin"))
    return operands[name].astype(dtype), weight.astype(dtype)[:, None, None, :], cos, sin


def _inverse_rms(x: jax.Array, settings: Settings) -> jax.Array:
    return jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + settings.epsilon)


def _summed(cotangent: jax.Array, operand: jax.Array) -> jax.Array:
    """Over the batch, where the operand is shared by all of it."""
    shared = operand.shape[0] < cotangent.shape[0]
    return (cotangent.sum(0, keepdims=True) if shared else cotangent).astype(operand.dtype)


def _rotate(x, cos, sin, layout):
    pairs = cos.shape[-1]
    x, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    # As (pairs, 2) or (2, pairs), the two members of a pair lie along an axis of their own.
    shape, axis = ((pairs, 2), -1) if layout == "interleaved" else ((2, pairs), -2)
    a, b = jnp.moveaxis(x.reshape(*x.shape[:-1], *shape), axis, 0)
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=axis)
    turned = turned.reshape(*turned.shape[:-2], 2 * pairs)
    return jnp.concatenate([turned, jnp.broadcast_to(rest, (*turned.shape[:-1], rest.shape[-1]))], axis=-1)


_TRITON = Rules.of_modules(*3 * ["pallas_kernels.neighbours.rotary_triton"])
XLA = Rules(lambda operands, settings: tuple(_forward(operands, settings)), recomputed(_forward).tangent, _backward)
_FUSED = Fused("rotary", {"xla": XLA, "triton": _TRITON}, second_order=XLA, shapes=_shapes)
