r"""The backward pass of attention, without the matrix of logits: each tile of it is computed again from the lse.

With z the logits, p = exp(z - lse), and o, lse the outputs with cotangents do, dlse (Dao, "FlashAttention-2", 2023,
section 3)

    dp = do v^T,   delta = sum(do o) - dlse,   dz = p (dp - delta)
    dq = scale dz k,   dk = scale dz^T q,   dv = p^T do,   dbias = dz,   dsink = -sum exp(sink - lse) delta

where a soft cap multiplies dz by 1 - tanh^2 on its way to q and k. Three kernels, each with one owner for every number
that it writes, so that a result never depends on the order of programs: dq by tiles of queries; dk and dv by tiles of
keys, over all query heads that share the key head; dbias by tiles of itself, over the axes along which it is
broadcast.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.dot_product_attention.schedule import Tiling
from pallas_kernels.triton.config import Config, choose
from pallas_kernels.triton.launch import Launch
from pallas_kernels.triton.problem import batch_of, describe, log2_lse, refuse
from pallas_kernels.triton.tile import (
    at_head,
    at_pair,
    keys_of,
    live,
    load_rows,
    seen_logits,
    tiles,
    visited,
    visits,
    work,
)


@triton.jit
def attention_dq(
    query, key, value, bias, sinks, dense, key_start, key_end, query_segments, key_segments, query_positions,
    key_positions, ancestors, tree_start, span, schedule, dout, lse, delta, T, S, dq,
    P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head, over its keys."""
    rules = (dense, key_start, key_end, query_segments, key_segments, query_positions, key_positions,
             ancestors, tree_start)  # fmt: skip
    tile, count, batch, head = work(T, P.heads, BLOCK_Q, P.right is not None)
    first = tile * BLOCK_Q
    i = first + tl.arange(0, BLOCK_Q)
    inside = i < T

    query += at_head(batch, P.batched.query, T, head, P.heads, P.width)
    key += at_head(batch, P.batched.key, S, head // P.group, P.kv_heads, P.width)
    value += at_head(batch, P.batched.values, S, head // P.group, P.kv_heads, P.value_width)
    dout += at_head(batch, 1, T, head, P.heads, P.value_width)
    q = load_rows(query, first, inside, P.query_stride, BLOCK_Q, P.width, P.block_width, True)
    do = load_rows(dout, first, inside, P.out_stride, BLOCK_Q, P.value_width, P.block_value, True)
    row = (batch.to(tl.int64) * P.heads + head) * T + i
    level = tl.load(lse + row, mask=inside, other=float("inf"))
    slack = tl.load(delta + row, mask=inside, other=0.0)
    acc = tl.zeros((BLOCK_Q, P.block_width), tl.float32)

    last = tl.minimum(first + BLOCK_Q, T) - 1
    low, high, full_low, full_high = tiles(schedule, batch, tile, count, first, last, S, P.left, P.right, BLOCK_K, P)
    for edge in tl.static_range(0 if P.full else 1, 2 if P.partial else 1):
        for visit in range(visits(edge, low, high, full_low, full_high)):
            start, j, keep = keys_of(edge, visit, low, full_low, full_high, rules, span, batch, S, BLOCK_K, P)
            k = load_rows(key, start, keep, P.key_stride, BLOCK_K, P.width, P.block_width, edge == 1)
            v = load_rows(value, start, keep, P.value_stride, BLOCK_K, P.value_width, P.block_value, edge == 1)
            dots = tl.dot(q, tl.trans(k), input_precision="ieee")
            z, slope = seen_logits(dots, edge, rules, bias, batch, head, i[:, None], j[None, :], T, S, P)
            p = tl.exp2(z - level[:, None])
            dp = tl.dot(do, tl.trans(v), input_precision="ieee")
            dz = p * (dp - slack[:, None]) * slope
            acc = tl.dot(dz.to(k.dtype), k, acc, input_precision="ieee")

    columns = tl.arange(0, P.block_width)[None, :]
    at = (batch.to(tl.int64) * T + i) * P.heads + head
    inner = inside[:, None] & (columns < P.width)
    tl.store(dq + at[:, None] * P.width + columns, (acc * P.scale).to(dq.dtype.element_ty), mask=inner)


@triton.jit
def attention_dkv(
    query, key, value, bias, sinks, dense, key_start, key_end, query_segments, key_segments, query_positions,
    key_positions, ancestors, tree_start, span, schedule, dout, lse, delta, T, S, dk, dv,
    P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one key head, over its queries of all heads that share it. Tiles are (keys, queries) here."""
    rules = (dense, key_start, key_end, query_segments, key_segments, query_positions, key_positions,
             ancestors, tree_start)  # fmt: skip
    tile, count, batch, kv_head = work(S, P.kv_heads, BLOCK_K, False)
    first = tile * BLOCK_K
    j = first + tl.arange(0, BLOCK_K)
    within = j < S
    keep = live(rules, span, batch, j, S, P)

    query += at_head(batch, P.batched.query, T, kv_head * P.group, P.heads, P.width)
    key += at_head(batch, P.batched.key, S, kv_head, P.kv_heads, P.width)
    value += at_head(batch, P.batched.values, S, kv_head, P.kv_heads, P.value_width)
    dout += at_head(batch, 1, T, kv_head * P.group, P.heads, P.value_width)
    k = load_rows(key, first, keep, P.key_stride, BLOCK_K, P.width, P.block_width, True)
    v = load_rows(value, first, keep, P.value_stride, BLOCK_K, P.value_width, P.block_value, True)
    key_acc = tl.zeros((BLOCK_K, P.block_width), tl.float32)
    value_acc = tl.zeros((BLOCK_K, P.block_value), tl.float32)

    last = tl.minimum(first + BLOCK_K, S) - 1
    low, high, full_low, full_high = tiles(schedule, batch, tile, count, first, last, T, P.right, P.left, BLOCK_Q, P)
    for edge in tl.static_range(0 if P.full else 1, 2 if P.partial else 1):
        for member in range(P.group):
            head = kv_head * P.group + member
            for visit in range(visits(edge, low, high, full_low, full_high)):
                start = visited(edge, visit, low, full_low, full_high) * BLOCK_Q
                i = start + tl.arange(0, BLOCK_Q)
                inside = i < T
                q = load_rows(query + member * P.width, start, inside, P.query_stride, BLOCK_Q, P.width,
                              P.block_width, edge == 1)  # fmt: skip
                do = load_rows(dout + member * P.value_width, start, inside, P.out_stride, BLOCK_Q,
                               P.value_width, P.block_value, edge == 1)  # fmt: skip
                row = (batch.to(tl.int64) * P.heads + head) * T + i
                level = tl.load(lse + row, mask=inside, other=float("inf"))
                slack = tl.load(delta + row, mask=inside, other=0.0)
                dots = tl.dot(k, tl.trans(q), input_precision="ieee")
                z, slope = seen_logits(dots, edge, rules, bias, batch, head, i[None, :], j[:, None], T, S, P)
                p = tl.exp2(z - level[None, :])
                value_acc = tl.dot(p.to(do.dtype), do, value_acc, input_precision="ieee")
                dp = tl.dot(v, tl.trans(do), input_precision="ieee")
                dz = p * (dp - slack[None, :]) * slope
                key_acc = tl.dot(dz.to(q.dtype), q, key_acc, input_precision="ieee")

    at = ((batch.to(tl.int64) * S + j) * P.kv_heads + kv_head)[:, None]
    columns, value_columns = tl.arange(0, P.block_width)[None, :], tl.arange(0, P.block_value)[None, :]
    key_acc, value_acc = (key_acc * P.scale).to(dk.dtype.element_ty), value_acc.to(dv.dtype.element_ty)
    tl.store(dk + at * P.width + columns, key_acc, mask=within[:, None] & (columns < P.width))
    tl.store(dv + at * P.value_width + value_columns, value_acc, mask=within[:, None] & (value_columns < P.value_width))


@triton.jit
def add_dlogits(acc, query, key, value, bias, rules, span, dout, lse, delta, batch, head, first_query, first_key, T, S,
                P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """acc with the cotangent of the logits of one tile."""
    i, j = first_query + tl.arange(0, BLOCK_Q), first_key + tl.arange(0, BLOCK_K)
    inside, keep = i < T, live(rules, span, batch, j, S, P)
    query += at_head(batch, P.batched.query, T, head, P.heads, P.width)
    key += at_head(batch, P.batched.key, S, head // P.group, P.kv_heads, P.width)
    value += at_head(batch, P.batched.values, S, head // P.group, P.kv_heads, P.value_width)
    dout += at_head(batch, 1, T, head, P.heads, P.value_width)
    q = load_rows(query, first_query, inside, P.query_stride, BLOCK_Q, P.width, P.block_width, True)
    k = load_rows(key, first_key, keep, P.key_stride, BLOCK_K, P.width, P.block_width, True)
    v = load_rows(value, first_key, keep, P.value_stride, BLOCK_K, P.value_width, P.block_value, True)
    do = load_rows(dout, first_query, inside, P.out_stride, BLOCK_Q, P.value_width, P.block_value, True)
    row = (batch.to(tl.int64) * P.heads + head) * T + i
    level = tl.load(lse + row, mask=inside, other=float("inf"))
    slack = tl.load(delta + row, mask=inside, other=0.0)
    dots = tl.dot(q, tl.trans(k), input_precision="ieee")
    z, slope = seen_logits(dots, 1, rules, bias, batch, head, i[:, None], j[None, :], T, S, P)
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    return acc + tl.exp2(z - level[:, None]) * (dp - slack[:, None])


@triton.jit
def attention_dbias(
    query, key, value, bias, sinks, dense, key_start, key_end, query_segments, key_segments, query_positions,
    key_positions, ancestors, tree_start, span, schedule, dout, lse, delta, B, T, S, dbias,
    P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the bias, over the batch, heads, queries and keys that share it, where the mask shows any."""
    rules = (dense, key_start, key_end, query_segments, key_segments, query_positions, key_positions,
             ancestors, tree_start)  # fmt: skip
    query_tiles, key_tiles = tl.cdiv(T, BLOCK_Q), tl.cdiv(S, BLOCK_K)
    # Along each axis: the tile owned where the bias has the axis, all of them where it is broadcast.
    program = tl.program_id(0)
    own_key, many_keys = 0, key_tiles
    if P.bias.key:
        own_key, many_keys = program % key_tiles, 1
        program = program // key_tiles
    own_query, many_queries = 0, query_tiles
    if P.bias.query:
        own_query, many_queries = program % query_tiles, 1
        program = program // query_tiles
    own_head, many_heads = 0, P.heads
    if P.bias.head:
        own_head, many_heads = program % P.heads, 1
        program = program // P.heads
    own_batch, many_batches = 0, B
    if P.bias.batch:
        own_batch, many_batches = program, 1

    acc = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    for visit in range(many_batches * many_heads * many_queries * many_keys):
        key_tile = own_key + visit % many_keys
        rest = visit // many_keys
        query_tile = own_query + rest % many_queries
        rest = rest // many_queries
        head = own_head + rest % many_heads
        batch = own_batch + rest // many_heads
        if P.scheduled or P.left is not None or P.right is not None:
            first, last = query_tile * BLOCK_Q, tl.minimum(query_tile * BLOCK_Q + BLOCK_Q, T) - 1
            low, high, full_low, full_high = tiles(
                schedule, batch, query_tile, query_tiles, first, last, S, P.left, P.right, BLOCK_K, P
            )
            if (key_tile >= low) & (key_tile < high):
                acc = add_dlogits(acc, query, key, value, bias, rules, span, dout, lse, delta, batch, head,
                                  query_tile * BLOCK_Q, key_tile * BLOCK_K, T, S, P, BLOCK_Q, BLOCK_K)  # fmt: skip
        else:  # without a test the loads run ahead
            acc = add_dlogits(acc, query, key, value, bias, rules, span, dout, lse, delta, batch, head,
                              query_tile * BLOCK_Q, key_tile * BLOCK_K, T, S, P, BLOCK_Q, BLOCK_K)  # fmt: skip

    i, j = own_query * BLOCK_Q + tl.arange(0, BLOCK_Q), own_key * BLOCK_K + tl.arange(0, BLOCK_K)
    if not P.bias.query:
        acc = tl.sum(acc, 0)[None, :]
        i = tl.arange(0, 1)
    if not P.bias.key:
        acc = tl.sum(acc, 1)[:, None]
        j = tl.arange(0, 1)
    pair = at_pair(P.bias, tl.program_id(0) * 0 + own_batch, own_head, i[:, None], j[None, :], T, S, P)
    tl.store(dbias + pair, acc.to(dbias.dtype.element_ty), mask=(i < T)[:, None] & (j < S)[None, :])


def backward(
    cotangents: Sequence[jax.Array],
    operands: Arrays,
    outputs: Sequence[jax.Array],
    wanted: tuple[str, ...],
    settings: Settings,
    configs: Mapping[str, Config] | None = None,
) -> Arrays:
    """Cotangents of the operands named in `wanted`. Raises NotImplementedError for what the kernels cannot do."""
    refuse(operands)
    (dout, dlse), (out, lse) = cotangents, outputs
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - dlse
    given = (dout, log2_lse(lse), jnp.swapaxes(delta, 1, 2))
    found = {}
    if "query" in wanted:
        (found["query"],) = launch_dq(given, operands, settings, choose("dq", operands, configs)).run()
    if "key" in wanted or "value" in wanted:
        found["key"], found["value"] = launch_dkv(given, operands, settings, choose("dkv", operands, configs)).run()
    if "bias" in wanted:
        (found["bias"],) = launch_dbias(given, operands, settings, choose("dbias", operands, configs)).run()
    if "sinks" in wanted:
        weight = jnp.exp(operands["sinks"].astype(jnp.float32)[:, None, :] - jnp.where(jnp.isneginf(lse), jnp.inf, lse))
        found["sinks"] = -jnp.sum(weight * delta, axis=1)
    return {name: _shared(found[name], operands[name]) for name in wanted}


def _shared(cotangent: jax.Array, operand: jax.Array) -> jax.Array:
    """The cotangent of an operand that the whole batch shares sums over it."""
    if cotangent.shape[0] > operand.shape[0]:
        cotangent = cotangent.sum(0, keepdims=True)
    return cotangent.astype(operand.dtype)


def _result(name: str, operands: Arrays) -> jax.ShapeDtypeStruct:
    """A cotangent with the full batch, in float32 where it is still to be summed over it."""
    x, batch = operands[name], batch_of(operands)
    return jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype if x.shape[0] == batch else jnp.float32)


def launch_dq(given: tuple, operands: Arrays, settings: Settings, config: Config) -> Launch:
    """The launch that gives dq; `given` is (dout, lse, delta), the last two (B,N,T), lse in units of log 2."""
    (_, queries, heads, _), keys = operands["query"].shape, operands["key"].shape[1]
    problem, arrays = describe(operands, settings, Tiling("queries", config.block_q, config.block_k))
    grid = (-(-queries // config.block_q) * heads * batch_of(operands),)
    constants = dict(P=problem, BLOCK_Q=config.block_q, BLOCK_K=config.block_k)
    inputs = [*arrays, *given, queries, keys]
    return Launch(attention_dq, inputs, [_result("query", operands)], grid, config, constants)


def launch_dkv(given: tuple, operands: Arrays, settings: Settings, config: Config) -> Launch:
    """The launch that gives dk and dv."""
    queries, (_, keys, kv_heads, _) = operands["query"].shape[1], operands["key"].shape
    problem, arrays = describe(operands, settings, Tiling("keys", config.block_q, config.block_k))
    grid = (-(-keys // config.block_k) * kv_heads * batch_of(operands),)
    constants = dict(P=problem, BLOCK_Q=config.block_q, BLOCK_K=config.block_k)
    outputs = [_result("key", operands), _result("value", operands)]
    return Launch(attention_dkv, [*arrays, *given, queries, keys], outputs, grid, config, constants)


def launch_dbias(given: tuple, operands: Arrays, settings: Settings, config: Config) -> Launch:
    """The launch that gives dbias, in the shape of the bias."""
    bias, batch = operands["bias"], batch_of(operands)
    (_, queries, heads, _), keys = operands["query"].shape, operands["key"].shape[1]
    problem, arrays = describe(operands, settings, Tiling("queries", config.block_q, config.block_k))
    axes = problem.bias
    programs = (batch if axes.batch else 1) * (heads if axes.head else 1)
    programs *= -(-queries // config.block_q) if axes.query else 1
    programs *= -(-keys // config.block_k) if axes.key else 1
    constants = dict(P=problem, BLOCK_Q=config.block_q, BLOCK_K=config.block_k)
    outputs = [jax.ShapeDtypeStruct(bias.shape, bias.dtype)]
    return Launch(attention_dbias, [*arrays, *given, batch, queries, keys], outputs, (programs,), config, constants)
