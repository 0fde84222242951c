"""What all attention kernels share: the mask of one tile, its logits, the tiles to visit, and loads of rows.

`i` and `j` are indices of queries and keys that broadcast against each other: (R,1) and (1,C), or transposed. Each
rule of a mask is tested in `visible`, and nowhere else. Logits are in units of log 2, so that exp2 serves.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def work(rows, HEADS: tl.constexpr, BLOCK: tl.constexpr, REVERSED: tl.constexpr):
    """(tile, how many tiles, batch, head) of this program. REVERSED: the last tile first, for it takes the longest."""
    count = tl.cdiv(rows, BLOCK)
    program = tl.program_id(0)
    tile, stripe = program % count, program // count
    if REVERSED:
        tile = count - 1 - tile
    return tile, count, stripe // HEADS, stripe % HEADS


@triton.jit
def at_head(batch, BATCHED: tl.constexpr, length, head, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """Offset of the first row of a head, in an array (B,length,HEADS,WIDTH), or (1,..) that is not BATCHED."""
    return (batch.to(tl.int64) * BATCHED * length * HEADS + head) * WIDTH


@triton.jit
def visible(rules, batch, head, i, j, T, S, P: tl.constexpr):
    """What the queries i see of the keys j; False beyond the last of either."""
    dense, key_start, key_end, query_segments, key_segments, query_positions, key_positions, ancestors, start = rules
    inside, within = i < T, j < S
    seen = inside & within
    if P.positions:
        at = tl.load(key_positions + batch * P.batched.key_positions * S + j, mask=within, other=0)
        at = at - tl.load(query_positions + batch * P.batched.query_positions * T + i, mask=inside, other=0)
    else:
        at = j - i
    if P.left is not None:
        seen = seen & (at >= -P.left)
    if P.right is not None:
        seen = seen & (at <= P.right)
    if P.key_start:
        seen = seen & (j >= tl.load(key_start + batch * P.batched.key_start * T + i, mask=inside, other=0))
    if P.key_end:
        seen = seen & (j < tl.load(key_end + batch * P.batched.key_end * T + i, mask=inside, other=0))
    if P.segments:
        query = tl.load(query_segments + batch * P.batched.query_segments * T + i, mask=inside, other=-1)
        key = tl.load(key_segments + batch * P.batched.key_segments * S + j, mask=within, other=-1)
        seen = seen & (query == key) & (query >= 0)
    if P.words > 0:
        draft = j - tl.load(start + batch * P.batched.tree_start)
        known = (draft >= 0) & (draft < 32 * P.words) & inside
        row = (batch * P.batched.ancestors * T + i) * P.words
        word = tl.load(ancestors + row + draft // 32, mask=known, other=0)
        seen = seen & ((draft < 0) | (((word >> (draft % 32).to(tl.uint32)) & 1) == 1))
    if P.dense is not None:
        pair = at_pair(P.dense, batch, head, i, j, T, S, P)
        seen = seen & (tl.load(dense + pair, mask=inside & within, other=0) != 0)
    return seen


@triton.jit
def live(rules, span, batch, j, S, P: tl.constexpr):
    """Keys that may be seen at all. The others are loaded as zeros, for their memory may hold NaN."""
    keep = j < S
    if P.key_start or P.key_end:
        ends = span + batch * P.batched.span * 2
        keep = keep & (j >= tl.load(ends)) & (j < tl.load(ends + 1))
    if P.segments:
        keep = keep & (tl.load(rules[4] + batch * P.batched.key_segments * S + j, mask=keep, other=-1) >= 0)
    return keep


@triton.jit
def seen_logits(dots, edge: tl.constexpr, rules, bias, batch, head, i, j, T, S, P: tl.constexpr):
    """`logits`, -inf where not seen; the mask is tested at the edge alone."""
    found, slope = logits(dots, bias, batch, head, i, j, T, S, P)
    if edge == 1:
        found = tl.where(visible(rules, batch, head, i, j, T, S, P), found, float("-inf"))
    return found, slope


@triton.jit
def logits(dots, bias, batch, head, i, j, T, S, P: tl.constexpr):
    """(logits, their derivative by scale * query . key): capped, plus bias."""
    if P.soft_cap is None:
        found = dots * P.exponent
        slope = 1.0
    else:
        shrunk = tl.exp2(tl.abs(dots) * (-2.0 * P.exponent / P.soft_cap))
        tanh = (1.0 - shrunk) / (1.0 + shrunk)
        found = tl.where(dots < 0, -tanh, tanh) * (P.soft_cap * LOG2E)
        slope = 1.0 - tanh * tanh
    if P.bias is not None:
        found += load_pairs(bias, P.bias, batch, head, i, j, T, S, P) * LOG2E
    return found, slope


@triton.jit
def load_pairs(array, axes: tl.constexpr, batch, head, i, j, T, S, P: tl.constexpr):
    """A tile of an array (#B,#N,#T,#S), in float32."""
    pair = at_pair(axes, batch, head, i, j, T, S, P)
    return tl.load(array + pair, mask=(i < T) & (j < S), other=0).to(tl.float32)


@triton.jit
def at_pair(axes: tl.constexpr, batch, head, i, j, T, S, P: tl.constexpr):
    """Offsets into an array (#B,#N,#T,#S)."""
    row = batch.to(tl.int64) * axes.batch
    if axes.head:
        row = row * P.heads + head
    if axes.query:
        row = row * T + i
    if axes.key:
        return row * S + j
    return row + j * 0


@triton.jit
def tiles(schedule, batch, tile, count, first, last, length, BACK: tl.constexpr, AHEAD: tl.constexpr,
          BLOCK: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """(low, high, full_low, full_high) of the tiles of the other side, for the indices first to last of this one.

    Index x of this side meets [x - BACK, x + AHEAD] of the other, which has `length` of them.
    """
    if P.scheduled:
        at = schedule + (batch * P.batched.schedule * count + tile) * 4
        return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    low = first * 0
    full_low = first * 0
    high = tl.cdiv(length, BLOCK) + first * 0
    full_high = length // BLOCK + first * 0
    if BACK is not None:
        low = tl.maximum(first - BACK, 0) // BLOCK
        full_low = tl.cdiv(tl.maximum(last - BACK, 0), BLOCK)
    if AHEAD is not None:
        high = tl.cdiv(tl.minimum(tl.maximum(last + AHEAD + 1, 0), length), BLOCK)
        full_high = tl.minimum(tl.maximum(first + AHEAD + 1, 0), length) // BLOCK
    low = tl.minimum(low, high)
    full_low = tl.minimum(tl.maximum(full_low, low), high)
    full_high = tl.minimum(tl.maximum(full_high, full_low), high)
    if not P.full:
        full_high = full_low
    return low, high, full_low, full_high


@triton.jit
def visits(edge: tl.constexpr, low, high, full_low, full_high):
    """How many tiles there are to visit: at first (edge 0) those that are seen whole, then the others."""
    if edge == 0:
        return full_high - full_low
    return high - low - (full_high - full_low)


@triton.jit
def visited(edge: tl.constexpr, visit, low, full_low, full_high):
    """The tile of a visit."""
    if edge == 0:
        return full_low + visit
    return low + visit + tl.where(low + visit >= full_low, full_high - full_low, 0)


@triton.jit
def keys_of(edge: tl.constexpr, visit, low, full_low, full_high, rules, span, batch, S, BLOCK_K: tl.constexpr,
            P: tl.constexpr):  # fmt: skip
    """(first key, keys, which of them to load) of the tile of a visit."""
    start = visited(edge, visit, low, full_low, full_high) * BLOCK_K
    j = start + tl.arange(0, BLOCK_K)
    keep = j < S
    if edge == 1:
        keep = live(rules, span, batch, j, S, P)
    return start, j, keep


@triton.jit
def load_rows(array, start, keep, STRIDE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
              TEST: tl.constexpr):  # fmt: skip
    """The rows [start, start + ROWS) of an array (.., WIDTH), zeros beyond its width and where `keep` fails a TEST."""
    columns = tl.arange(0, COLUMNS)[None, :]
    at = array + start.to(tl.int64) * STRIDE + tl.arange(0, ROWS)[:, None] * STRIDE + columns
    if TEST:
        return tl.load(at, mask=keep[:, None] & (columns < WIDTH), other=0.0)
    if WIDTH == COLUMNS:
        return tl.load(at)
    return tl.load(at, mask=columns < WIDTH, other=0.0)
