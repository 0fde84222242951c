r"""Decoding, and verifying drafts: few queries over many keys, split among programs so that a whole GPU has work.

All queries of all heads that share a key head go into one tile, so each key is read once (grouped queries packed:
FlashAttention and FlashInfer). The keys that the tile sees are cut into `splits` parts, each a program of its own that
gives (out_s, lse_s). They join exactly (Flash-Decoding, Dao et al. 2023):

    lse = log(sum_s exp(lse_s) + exp(sink)),   out = sum_s exp(lse_s - lse) out_s

A token tree is a mask like any other: its drafts' ancestors are tested in the tiles after the common prefix.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.triton.config import Config, choose
from pallas_kernels.triton.flash import launch_forward
from pallas_kernels.triton.problem import batch_of

MOST_QUERIES = 64
"""More queries than this fill the tiles of the ordinary kernel."""
PROGRAMS = 264
"""Two for each processor of an H100 or H200."""
KEYS_PER_SPLIT = 512
"""A part of fewer keys costs more to join than it saves."""


def suits(operands: Arrays) -> bool:
    """Whether there are few queries, and keys enough to split or heads to pack."""
    queries, keys = operands["query"].shape[1], operands["key"].shape[1]
    return queries <= MOST_QUERIES and keys >= 2 * KEYS_PER_SPLIT


def decode(
    operands: Arrays, settings: Settings, configs: Mapping[str, Config] | None = None
) -> tuple[jax.Array, jax.Array]:
    """(out (B,T,N,V), lse (B,T,N)), as `forward` gives them."""
    config, splits = plan(operands, configs)
    return join(operands, settings, config, splits)


def plan(operands: Arrays, configs: Mapping[str, Config] | None = None) -> tuple[Config, int]:
    """The tile that holds the packed queries, and the number of splits that fills the GPU."""
    rows, kv_heads = operands["query"].shape[1] * pack(operands), operands["key"].shape[2]
    config = choose("decode", operands, configs, rows=rows)
    programs = -(-rows // config.block_q) * kv_heads * batch_of(operands)
    most = max(1, operands["key"].shape[1] // KEYS_PER_SPLIT)
    return config, max(1, min(most, PROGRAMS // programs))


def pack(operands: Arrays) -> int:
    """Query heads that share a key head, and so a tile."""
    return operands["query"].shape[2] // operands["key"].shape[2]


def join(operands: Arrays, settings: Settings, config: Config, splits: int) -> tuple[jax.Array, jax.Array]:
    """Runs the splits without the sinks, which belong to none of them, and joins their results."""
    rest = {name: x for name, x in operands.items() if name != "sinks" or splits == 1}
    out, lse = launch_forward(rest, settings, config, pack=pack(operands), splits=splits).run()
    if splits == 1:
        return out, lse
    top = jnp.max(lse, axis=0)
    sinks = operands.get("sinks")
    if sinks is not None:
        sinks = sinks.astype(jnp.float32)[:, None, :]
        top = jnp.maximum(top, sinks)
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(lse - top)
    total = jnp.sum(weights, axis=0)
    if sinks is not None:
        total = total + jnp.exp(sinks - top)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    out = jnp.einsum("sbtn,sbtnv->btnv", weights / total, out)
    return out.astype(operands["query"].dtype), jnp.where(some, jnp.log(total) + top, -jnp.inf)
