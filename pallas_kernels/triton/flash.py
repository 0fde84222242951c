r"""Flash attention: softmax over the keys, one tile of them after another, without the matrix of logits.

With m the greatest logit so far, l the sum of exp(logit - m) and acc the sum of exp(logit - m) value, a further tile
of logits z gives (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao, "FlashAttention-2",
2023)

    m' = max(m, max z),   l' = l exp(m - m') + sum exp(z - m'),   acc' = acc exp(m - m') + exp(z - m') value

and in the end out = acc / l, lse = m + log l. A sink is a first key of logit `sink` and of value zero.

Tiles that are seen whole come first, without a test of the mask; then those at its edges. For decoding, a tile can
hold all query heads that share a key head (`PACK`), and the keys can be split among programs (`SPLITS`); see
decode.py.
"""

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings, shapes
from pallas_kernels.dot_product_attention.schedule import Tiling
from pallas_kernels.triton.config import Config
from pallas_kernels.triton.launch import Launch
from pallas_kernels.triton.problem import batch_of, describe
from pallas_kernels.triton.tile import LOG2E, at_head, keys_of, load_rows, seen_logits, tiles, visits, work


@triton.jit
def attention_forward(
    query, key, value, bias, sinks, dense, key_start, key_end, query_segments, key_segments, query_positions,
    key_positions, ancestors, tree_start, span, schedule, T, S, out, lse,
    P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head (of PACK heads), over one of SPLITS parts of its keys."""
    rules = (dense, key_start, key_end, query_segments, key_segments, query_positions, key_positions,
             ancestors, tree_start)  # fmt: skip
    tile, count, batch, stripe = work(T * PACK, P.heads // PACK, BLOCK_Q, P.right is not None)
    head, split = stripe * PACK, tl.program_id(1)
    rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    i, heads = rows // PACK, head + rows % PACK
    inside = i < T
    columns, value_columns = tl.arange(0, P.block_width), tl.arange(0, P.block_value)

    at = (batch.to(tl.int64) * P.batched.query * T + i) * P.heads + heads
    inner = inside[:, None] & (columns < P.width)[None, :]
    q = tl.load(query + at[:, None] * P.width + columns[None, :], mask=inner, other=0.0)
    key += at_head(batch, P.batched.key, S, head // P.group, P.kv_heads, P.width)
    value += at_head(batch, P.batched.values, S, head // P.group, P.kv_heads, P.value_width)

    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    if P.sinks:
        sink = tl.load(sinks + batch * P.batched.sinks * P.heads + heads, mask=inside, other=float("-inf"))
        top = sink.to(tl.float32) * LOG2E
        total = tl.where(top == float("-inf"), 0.0, 1.0)
    acc = tl.zeros((BLOCK_Q, P.block_value), tl.float32)

    first = tile * BLOCK_Q // PACK
    last = tl.minimum((tile * BLOCK_Q + BLOCK_Q - 1) // PACK, T - 1)
    if PACK > 1:  # one row of the schedule holds all queries
        low, high, full_low, full_high = tiles(schedule, batch, 0, 1, first, last, S, P.left, P.right, BLOCK_K, P)
    else:
        low, high, full_low, full_high = tiles(
            schedule, batch, tile, count, first, last, S, P.left, P.right, BLOCK_K, P
        )
    if SPLITS > 1:
        part = tl.cdiv(high - low, SPLITS)
        low = tl.minimum(low + split * part, high)
        high = tl.minimum(low + part, high)
        full_low = tl.minimum(tl.maximum(full_low, low), high)
        full_high = tl.minimum(tl.maximum(full_high, full_low), high)

    for edge in tl.static_range(0 if P.full else 1, 2 if P.partial else 1):
        for visit in range(visits(edge, low, high, full_low, full_high)):
            start, j, keep = keys_of(edge, visit, low, full_low, full_high, rules, span, batch, S, BLOCK_K, P)
            k = load_rows(key, start, keep, P.key_stride, BLOCK_K, P.width, P.block_width, edge == 1)
            dots = tl.dot(q, tl.trans(k), input_precision="ieee")
            z, _ = seen_logits(dots, edge, rules, bias, batch, heads[:, None], i[:, None], j[None, :], T, S, P)
            higher = tl.maximum(top, tl.max(z, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            p = tl.exp2(z - base[:, None])
            shrink = tl.exp2(top - base)
            total = total * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None]
            v = load_rows(value, start, keep, P.value_stride, BLOCK_K, P.value_width, P.block_value, edge == 1)
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
            top = higher

    some = total > 0
    total = tl.where(some, total, 1.0)
    at = ((split * (tl.num_programs(0) // count // (P.heads // PACK)) + batch).to(tl.int64) * T + i) * P.heads + heads
    inner = inside[:, None] & (value_columns < P.value_width)[None, :]
    acc = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + at[:, None] * P.value_width + value_columns[None, :], acc, mask=inner)
    tl.store(lse + at, tl.where(some, (top + tl.log2(total)) / LOG2E, float("-inf")), mask=inside)


def launch_forward(operands: Arrays, settings: Settings, config: Config, *, pack: int = 1, splits: int = 1) -> Launch:
    """The launch that gives out and lse; for each of several splits in float32, with a leading axis of that size."""
    queries, keys, heads = operands["query"].shape[1], operands["key"].shape[1], operands["query"].shape[2]
    problem, arrays = describe(operands, settings, tiling(config, queries, pack))
    outputs = shapes(operands, settings)
    if splits > 1:
        outputs = [jax.ShapeDtypeStruct((splits, *x.shape), jnp.float32) for x in outputs]
    programs = -(-queries * pack // config.block_q) * heads // pack * batch_of(operands)
    constants = dict(P=problem, BLOCK_Q=config.block_q, BLOCK_K=config.block_k, PACK=pack, SPLITS=splits)
    return Launch(attention_forward, [*arrays, queries, keys], outputs, (programs, splits), config, constants)


def tiling(config: Config, queries: int, pack: int = 1) -> Tiling:
    """Packed queries are one tile of the schedule."""
    return Tiling("queries", config.block_q if pack == 1 else queries, config.block_k)
