r"""qk-norm and rotary embedding as kernels: a program turns a tile of tokens, head after head, by one tile of angles.

Queries and keys are read once and written once. Backward, the gradient is turned back first,

    (da, db) = (da' cos + db' sin, db' cos - da' sin),

then goes through the norm. The gradients of the weights are sums over tokens and heads: a program writes those of its
tokens as a part of its own, and XLA adds up the parts, in one order always. Derivatives by the angles are left to XLA.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.derivatives import Arrays
from pallas_kernels.neighbours import rotary
from pallas_kernels.neighbours.rotary import Settings
from pallas_kernels.triton.launch import Launch

TILE = 1024
"""Numbers of one head that a program turns at once."""


@dataclass(frozen=True)
class Problem:
    """What is compiled into a kernel; `..._batched` is 1 for arrays with a batch axis of full size, else 0.

    Triton names compiled kernels by these fields: a kernel reads no property.
    """

    interleaved: bool
    norm: bool
    epsilon: float
    width: int
    pairs: int
    rest: int
    """Numbers that are not turned."""
    block: int
    """Pairs of a tile."""
    block_rest: int
    rows: int
    """Tokens of a tile."""
    heads: int
    key_heads: int
    cos_batched: int
    sin_batched: int
    query_weight: bool
    key_weight: bool
    query_weight_batched: int
    key_weight_batched: int
    moves_query_weight: bool = False
    moves_key_weight: bool = False

    num_warps = 4
    num_stages = 1


@triton.jit
def load_head(array, at, keep, P: tl.constexpr):
    """(first of each pair, second of each pair, the rest) of the heads that start at `at` (ROWS,1), in float32."""
    pair = tl.arange(0, P.block)[None, :]
    inside = keep & (pair < P.pairs)
    if P.interleaved:
        both = (at + 2 * pair)[:, :, None] + tl.arange(0, 2)[None, None, :]
        first, second = tl.split(tl.load(array + both, mask=inside[:, :, None], other=0.0))
    else:
        first = tl.load(array + at + pair, mask=inside, other=0.0)
        second = tl.load(array + at + P.pairs + pair, mask=inside, other=0.0)
    column = tl.arange(0, P.block_rest)[None, :]
    rest = tl.load(array + at + 2 * P.pairs + column, mask=keep & (column < P.rest), other=0.0)
    return first.to(tl.float32), second.to(tl.float32), rest.to(tl.float32)


@triton.jit
def store_head(array, at, keep, first, second, rest, P: tl.constexpr):
    kind: tl.constexpr = array.dtype.element_ty
    pair = tl.arange(0, P.block)[None, :]
    inside = keep & (pair < P.pairs)
    if P.interleaved:
        both = (at + 2 * pair)[:, :, None] + tl.arange(0, 2)[None, None, :]
        tl.store(array + both, tl.join(first.to(kind), second.to(kind)), mask=inside[:, :, None])
    else:
        tl.store(array + at + pair, first.to(kind), mask=inside)
        tl.store(array + at + P.pairs + pair, second.to(kind), mask=inside)
    if P.rest > 0:
        column = tl.arange(0, P.block_rest)[None, :]
        tl.store(array + at + 2 * P.pairs + column, rest.to(kind), mask=keep & (column < P.rest))


@triton.jit
def load_weight(array, there: tl.constexpr, batched: tl.constexpr, batch, P: tl.constexpr):
    """A weight (1|B,H) as the parts of one head, each of one row; ones where there is none."""
    if there:
        at = (batch * batched * P.width + tl.zeros((1, 1), tl.int32)).to(tl.int64)
        return load_head(array, at, at >= 0, P)
    else:
        one = tl.full((1, P.block), 1.0, tl.float32)
        return one, one, tl.full((1, P.block_rest), 1.0, tl.float32)


@triton.jit
def mean_product(a, b, rest, x, y, others, P: tl.constexpr):
    """The mean over a head of the product of two of them, (ROWS,1)."""
    return ((tl.sum(a * x, 1) + tl.sum(b * y, 1) + tl.sum(rest * others, 1)) / P.width)[:, None]


@triton.jit
def tile_of(cos, sin, T, P: tl.constexpr):
    """(batch, tokens (ROWS,1), whether they exist, cos, sin) of this program."""
    count = tl.cdiv(T, P.rows)
    batch = (tl.program_id(0) // count).to(tl.int64)
    token = (tl.program_id(0) % count * P.rows + tl.arange(0, P.rows))[:, None]
    pair = tl.arange(0, P.block)[None, :]
    keep = (token < T) & (pair < P.pairs)
    c = tl.load(cos + (batch * P.cos_batched * T + token) * P.pairs + pair, mask=keep, other=0.0).to(tl.float32)
    s = tl.load(sin + (batch * P.sin_batched * T + token) * P.pairs + pair, mask=keep, other=0.0).to(tl.float32)
    return batch, token, token < T, c, s


@triton.jit
def turn_heads(x, out, weight, batch, token, keep, c, s, T, HEADS: tl.constexpr, P: tl.constexpr):
    wa, wb, wr = weight
    for head in range(HEADS):
        at = ((batch * T + token) * HEADS + head) * P.width
        a, b, rest = load_head(x, at, keep, P)
        if P.norm:
            inverse = tl.rsqrt(mean_product(a, b, rest, a, b, rest, P) + P.epsilon)
            a, b, rest = a * inverse * wa, b * inverse * wb, rest * inverse * wr
        store_head(out, at, keep, a * c - b * s, a * s + b * c, rest, P)


@triton.jit
def rotary_forward(query, key, cos, sin, query_weight, key_weight, T, turned_query, turned_key, P: tl.constexpr):
    """A tile of tokens of one sample, all heads."""
    batch, token, keep, c, s = tile_of(cos, sin, T, P)
    weight = load_weight(query_weight, P.query_weight, P.query_weight_batched, batch, P)
    turn_heads(query, turned_query, weight, batch, token, keep, c, s, T, P.heads, P)
    weight = load_weight(key_weight, P.key_weight, P.key_weight_batched, batch, P)
    turn_heads(key, turned_key, weight, batch, token, keep, c, s, T, P.key_heads, P)


@triton.jit
def move_heads(x, moved, out, weight, change, batch, token, keep, c, s, T, HEADS: tl.constexpr, MOVES: tl.constexpr,
               P: tl.constexpr):  # fmt: skip
    wa, wb, wr = weight
    for head in range(HEADS):
        at = ((batch * T + token) * HEADS + head) * P.width
        a, b, rest = load_head(moved, at, keep, P)
        if P.norm:
            na, nb, nr = load_head(x, at, keep, P)
            inverse = tl.rsqrt(mean_product(na, nb, nr, na, nb, nr, P) + P.epsilon)
            na, nb, nr = na * inverse, nb * inverse, nr * inverse
            along = mean_product(a, b, rest, na, nb, nr, P)
            a = inverse * (a - na * along) * wa
            b = inverse * (b - nb * along) * wb
            rest = inverse * (rest - nr * along) * wr
            if MOVES:
                a, b, rest = a + na * change[0], b + nb * change[1], rest + nr * change[2]
        store_head(out, at, keep, a * c - b * s, a * s + b * c, rest, P)


@triton.jit
def rotary_tangent(
    query, key, cos, sin, query_weight, key_weight, moved_query, moved_key, moved_query_weight, moved_key_weight, T,
    out_query, out_key, P: tl.constexpr,
):  # fmt: skip
    """The tangents of a tile of tokens; `moved_...` are those of the operands."""
    batch, token, keep, c, s = tile_of(cos, sin, T, P)
    weight = load_weight(query_weight, P.query_weight, P.query_weight_batched, batch, P)
    change = load_weight(moved_query_weight, P.moves_query_weight, P.query_weight_batched, batch, P)
    move_heads(query, moved_query, out_query, weight, change, batch, token, keep, c, s, T, P.heads,
               P.moves_query_weight, P)  # fmt: skip
    weight = load_weight(key_weight, P.key_weight, P.key_weight_batched, batch, P)
    change = load_weight(moved_key_weight, P.moves_key_weight, P.key_weight_batched, batch, P)
    move_heads(key, moved_key, out_key, weight, change, batch, token, keep, c, s, T, P.key_heads, P.moves_key_weight, P)


@triton.jit
def turn_back_heads(x, dout, dx, dweight, weight, batch, token, keep, c, s, T, HEADS: tl.constexpr, MOVES: tl.constexpr,
                    P: tl.constexpr):  # fmt: skip
    wa, wb, wr = weight
    sum_a = tl.zeros((P.block,), tl.float32)
    sum_b = tl.zeros((P.block,), tl.float32)
    sum_r = tl.zeros((P.block_rest,), tl.float32)
    for head in range(HEADS):
        at = ((batch * T + token) * HEADS + head) * P.width
        da, db, rest = load_head(dout, at, keep, P)
        a, b = da * c + db * s, db * c - da * s
        if P.norm:
            na, nb, nr = load_head(x, at, keep, P)
            inverse = tl.rsqrt(mean_product(na, nb, nr, na, nb, nr, P) + P.epsilon)
            na, nb, nr = na * inverse, nb * inverse, nr * inverse
            if MOVES:
                sum_a += tl.sum(a * na, 0)
                sum_b += tl.sum(b * nb, 0)
                sum_r += tl.sum(rest * nr, 0)
            a, b, rest = a * wa, b * wb, rest * wr
            along = mean_product(a, b, rest, na, nb, nr, P)
            a, b, rest = inverse * (a - na * along), inverse * (b - nb * along), inverse * (rest - nr * along)
        store_head(dx, at, keep, a, b, rest, P)
    if MOVES:
        at = (tl.program_id(0) * P.width + tl.zeros((1, 1), tl.int32)).to(tl.int64)
        store_head(dweight, at, at >= 0, sum_a[None, :], sum_b[None, :], sum_r[None, :], P)


@triton.jit
def rotary_backward(
    query, key, cos, sin, query_weight, key_weight, dturned_query, dturned_key, T,
    dquery, dkey, dquery_weight, dkey_weight, P: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of tokens, and the part that it adds to those of the weights."""
    batch, token, keep, c, s = tile_of(cos, sin, T, P)
    weight = load_weight(query_weight, P.query_weight, P.query_weight_batched, batch, P)
    turn_back_heads(query, dturned_query, dquery, dquery_weight, weight, batch, token, keep, c, s, T, P.heads,
                    P.moves_query_weight, P)  # fmt: skip
    weight = load_weight(key_weight, P.key_weight, P.key_weight_batched, batch, P)
    turn_back_heads(key, dturned_key, dkey, dkey_weight, weight, batch, token, keep, c, s, T, P.key_heads,
                    P.moves_key_weight, P)  # fmt: skip


OPERANDS = ("query", "key", "cos", "sin", "query_weight", "key_weight")
"""In the order of the kernels' parameters."""
TURNED, WEIGHTS, ANGLES = OPERANDS[:2], OPERANDS[4:], {"cos", "sin"}


def forward(operands: Arrays, settings: Settings) -> list[jax.Array]:
    """See `neighbours/rotary.py` for the normal form."""
    return launch_forward(operands, settings).run()


def tangent(tangents: Arrays, operands: Arrays, outputs, settings: Settings) -> list[jax.Array]:
    if ANGLES & tangents.keys():
        return rotary.XLA.tangent(tangents, operands, outputs, settings)
    return launch_tangent(tangents, operands, settings).run()


def backward(cotangents, operands: Arrays, outputs, wanted: tuple[str, ...], settings: Settings) -> Arrays:
    angles = tuple(name for name in wanted if name in ANGLES)
    found = rotary.XLA.backward(cotangents, operands, outputs, angles, settings) if angles else {}
    if len(angles) == len(wanted):
        return found
    launch = launch_backward(cotangents, operands, wanted, settings)
    batch = max(x.shape[0] for x in operands.values())
    for name, x in zip((*TURNED, *WEIGHTS), launch.run(), strict=True):
        if name in wanted:
            if name in WEIGHTS:
                x = x.reshape(batch, -1, x.shape[-1]).sum(1)
            shared = operands[name].shape[0] < batch
            x = x.sum(0, keepdims=True, dtype=jnp.float32) if shared else x
            found[name] = x.astype(operands[name].dtype)
    return found


def launch_forward(operands: Arrays, settings: Settings) -> Launch:
    problem, arrays, grid, turned = _describe(operands, settings)
    return Launch(rotary_forward, arrays, turned, grid, problem, dict(P=problem))


def launch_tangent(tangents: Arrays, operands: Arrays, settings: Settings) -> Launch:
    problem, arrays, grid, turned = _describe(operands, settings, tuple(tangents))
    moved = [
        jnp.broadcast_to(tangents.get(name, 0), x.shape).astype(x.dtype)
        for name, x in zip(TURNED, arrays[:2], strict=True)
    ]
    moved += [tangents.get(name, arrays[0]) for name in WEIGHTS]
    return Launch(rotary_tangent, [*arrays[:-1], *moved, arrays[-1]], turned, grid, problem, dict(P=problem))


def launch_backward(cotangents, operands: Arrays, wanted: tuple[str, ...], settings: Settings) -> Launch:
    problem, arrays, grid, turned = _describe(operands, settings, wanted)
    parts = [jax.ShapeDtypeStruct((*grid, problem.width) if name in wanted else (1,), jnp.float32) for name in WEIGHTS]
    inputs = [*arrays[:-1], *cotangents, arrays[-1]]
    return Launch(rotary_backward, inputs, [*turned, *parts], grid, problem, dict(P=problem))


def _describe(operands: Arrays, settings: Settings, moving: tuple[str, ...] = ()):
    """(what is compiled in, the inputs that every kernel starts with and T, the grid, shapes like query and key)."""
    batch = max(x.shape[0] for x in operands.values())
    turned = {name: jnp.broadcast_to(operands[name], (batch, *operands[name].shape[1:])) for name in TURNED}
    _, tokens, heads, width = turned["query"].shape

    def batched(name):
        return int(name in operands and operands[name].shape[0] > 1)

    pairs = operands["cos"].shape[-1]
    rest = width - 2 * pairs
    block, block_rest = triton.next_power_of_2(pairs), triton.next_power_of_2(rest) if rest else 1
    problem = Problem(
        interleaved=settings.layout == "interleaved",
        norm=settings.norm,
        epsilon=settings.epsilon,
        width=width,
        pairs=pairs,
        rest=rest,
        block=block,
        block_rest=block_rest,
        rows=max(1, TILE // triton.next_power_of_2(2 * block + (block_rest if rest else 0))),
        heads=heads,
        key_heads=turned["key"].shape[2],
        **{f"{name}_batched": batched(name) for name in ("cos", "sin", *WEIGHTS)},
        **{name: name in operands for name in WEIGHTS},
        **{f"moves_{name}": name in moving for name in WEIGHTS},
    )
    held = operands | turned
    arrays = [held.get(name, held["query"]) for name in OPERANDS]
    grid = (batch * -(-tokens // problem.rows),)
    return problem, [*arrays, tokens], grid, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in turned.values()]
