"""Attention by its definition, with the whole matrix of logits: the law that the other implementations are held to.

O(T S) memory. It is what the tests compare with, in float64; `reference` differentiates by plain autodiff.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings, accumulator, mask_of


def attend(operands: Arrays, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """(out (B,T,N,V), lse (B,T,N)) of a problem in normal form, by its definition."""
    query, key, value = operands["query"], operands["key"], operands["value"]
    dtype = accumulator(operands)
    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
    logits = settings.scale * jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=dtype)
    if settings.soft_cap is not None:
        logits = settings.soft_cap * jnp.tanh(logits / settings.soft_cap)
    if "bias" in operands:
        logits = logits + operands["bias"].astype(dtype)
    seen = mask_of(operands, settings).to_dense(query.shape[1], key.shape[1])
    logits = jnp.where(seen, logits, -jnp.inf)
    top = jnp.max(logits, axis=-1, keepdims=True)
    if "sinks" in operands:
        sinks = operands["sinks"].astype(dtype)[:, :, None, None]
        top = jnp.maximum(top, sinks)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    weights = jnp.where(jnp.isfinite(logits), jnp.exp(jnp.where(jnp.isfinite(logits), logits - top, 0.0)), 0.0)
    total = weights.sum(-1, keepdims=True)
    if "sinks" in operands:
        total = total + jnp.exp(sinks - top)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    probabilities = weights / total
    out = jnp.einsum("bnts,bsnv->btnv", probabilities.astype(value.dtype), value, preferred_element_type=dtype)
    lse = jnp.where(some, jnp.log(total) + top, -jnp.inf)[..., 0]
    return out.astype(query.dtype), jnp.swapaxes(lse, 1, 2)
