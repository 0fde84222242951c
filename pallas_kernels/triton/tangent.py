r"""The tangent of attention, without the matrix of logits, from the lse of the forward pass.

With z the logits, p = exp(z - lse), and a dot for the derivative along the given tangents,

    z. = scale (q. k^T + q k.^T) + bias.      (a soft cap multiplies the first term by 1 - tanh^2)
    h = p z.,   lse. = sum h + exp(sink - lse) sink.,   out. = p v. + h v - lse. out

Both products of out. go to one accumulator, which keeps the kernel free of spills at head width 128. Operands that
stand still cost nothing. This is the kernel that MeanFlow, sCM and other consistency models ask for: forward mode
through attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import triton
import triton.language as tl

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import DIFFERENTIABLE, Settings, shapes
from pallas_kernels.dot_product_attention.schedule import Tiling
from pallas_kernels.triton.config import Config, choose
from pallas_kernels.triton.launch import Launch
from pallas_kernels.triton.problem import batch_of, describe, log2_lse, refuse
from pallas_kernels.triton.tile import LOG2E, at_head, keys_of, load_pairs, load_rows, seen_logits, tiles, visits, work


@dataclass(frozen=True)
class Moving:
    """Which operands have a tangent. (`value` is a name that `tl.constexpr` keeps for itself.)"""

    query: bool
    key: bool
    values: bool
    bias: bool
    sinks: bool

    @property
    def logits(self) -> bool:
        return self.query or self.key or self.bias


@triton.jit
def attention_tangent(
    query, key, value, bias, sinks, dense, key_start, key_end, query_segments, key_segments, query_positions,
    key_positions, ancestors, tree_start, span, schedule, query_dot, key_dot, value_dot, bias_dot, sinks_dot, out, lse,
    T, S, out_dot, lse_dot,
    P: tl.constexpr, M: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head, over its keys."""
    rules = (dense, key_start, key_end, query_segments, key_segments, query_positions, key_positions,
             ancestors, tree_start)  # fmt: skip
    tile, count, batch, head = work(T, P.heads, BLOCK_Q, P.right is not None)
    first = tile * BLOCK_Q
    i = first + tl.arange(0, BLOCK_Q)
    inside = i < T
    value_columns = tl.arange(0, P.block_value)[None, :]

    query_at = at_head(batch, P.batched.query, T, head, P.heads, P.width)
    key_at = at_head(batch, P.batched.key, S, head // P.group, P.kv_heads, P.width)
    value_at = at_head(batch, P.batched.values, S, head // P.group, P.kv_heads, P.value_width)
    q = load_rows(query + query_at, first, inside, P.query_stride, BLOCK_Q, P.width, P.block_width, True)
    if M.query:
        tq = load_rows(query_dot + query_at, first, inside, P.query_stride, BLOCK_Q, P.width, P.block_width, True)
    level = tl.load(lse + (batch.to(tl.int64) * P.heads + head) * T + i, mask=inside, other=float("inf"))
    moved = tl.zeros((BLOCK_Q,), tl.float32)  # the tangent of the lse
    if M.sinks:
        sink = tl.load(sinks + batch * P.batched.sinks * P.heads + head).to(tl.float32)
        moved += tl.exp2(sink * LOG2E - level) * tl.load(sinks_dot + batch * P.batched.sinks * P.heads + head).to(
            tl.float32
        )
    acc = tl.zeros((BLOCK_Q, P.block_value), tl.float32)

    last = tl.minimum(first + BLOCK_Q, T) - 1
    low, high, full_low, full_high = tiles(schedule, batch, tile, count, first, last, S, P.left, P.right, BLOCK_K, P)
    for edge in tl.static_range(0 if P.full else 1, 2 if P.partial else 1):
        for visit in range(visits(edge, low, high, full_low, full_high)):
            start, j, keep = keys_of(edge, visit, low, full_low, full_high, rules, span, batch, S, BLOCK_K, P)
            k = load_rows(key + key_at, start, keep, P.key_stride, BLOCK_K, P.width, P.block_width, edge == 1)
            dots = tl.dot(q, tl.trans(k), input_precision="ieee")
            z, slope = seen_logits(dots, edge, rules, bias, batch, head, i[:, None], j[None, :], T, S, P)
            p = tl.exp2(z - level[:, None])
            if M.values:
                tv = load_rows(value_dot + value_at, start, keep, P.value_stride, BLOCK_K, P.value_width,
                               P.block_value, edge == 1)  # fmt: skip
                acc = tl.dot(p.to(tv.dtype), tv, acc, input_precision="ieee")
            if M.logits:
                tz = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
                if M.query:
                    tz = tl.dot(tq, tl.trans(k), tz, input_precision="ieee")
                if M.key:
                    tk = load_rows(key_dot + key_at, start, keep, P.key_stride, BLOCK_K, P.width, P.block_width,
                                   edge == 1)  # fmt: skip
                    tz = tl.dot(q, tl.trans(tk), tz, input_precision="ieee")
                tz = tz * (P.scale * slope)
                if M.bias:
                    tz += load_pairs(bias_dot, P.bias, batch, head, i[:, None], j[None, :], T, S, P)
                h = p * tz
                moved += tl.sum(h, 1)
                v = load_rows(value + value_at, start, keep, P.value_stride, BLOCK_K, P.value_width,
                              P.block_value, edge == 1)  # fmt: skip
                acc = tl.dot(h.to(v.dtype), v, acc, input_precision="ieee")

    at = (batch.to(tl.int64) * T + i) * P.heads + head
    inner = inside[:, None] & (value_columns < P.value_width)
    at_out = at[:, None] * P.value_width + value_columns
    acc -= moved[:, None] * tl.load(out + at_out, mask=inner, other=0.0).to(tl.float32)
    tl.store(out_dot + at_out, acc.to(out_dot.dtype.element_ty), mask=inner)
    tl.store(lse_dot + at, moved, mask=inside)


def tangent(
    tangents: Arrays,
    operands: Arrays,
    outputs: Sequence[jax.Array],
    settings: Settings,
    configs: Mapping[str, Config] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Tangents of (out, lse). Raises NotImplementedError for what the kernel cannot do."""
    refuse(operands)
    config = choose("tangent", operands, configs)
    out_dot, lse_dot = launch_tangent(tangents, operands, outputs, settings, config).run()
    return out_dot, lse_dot


def launch_tangent(
    tangents: Arrays, operands: Arrays, outputs: Sequence[jax.Array], settings: Settings, config: Config
) -> Launch:
    """The launch that gives the tangents of out and lse."""
    (_, queries, heads, _), keys = operands["query"].shape, operands["key"].shape[1]
    problem, arrays = describe(operands, settings, Tiling("queries", config.block_q, config.block_k))
    moving = Moving(*(name in tangents for name in DIFFERENTIABLE))
    out, lse = outputs
    given = [*(tangents.get(name, operands["query"]) for name in DIFFERENTIABLE), out, log2_lse(lse)]
    grid = (-(-queries // config.block_q) * heads * batch_of(operands),)
    constants = dict(P=problem, M=moving, BLOCK_Q=config.block_q, BLOCK_K=config.block_k)
    results = shapes(operands, settings)
    return Launch(attention_tangent, [*arrays, *given, queries, keys], results, grid, config, constants)
