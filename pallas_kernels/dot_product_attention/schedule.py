r"""Which tiles of the matrix of logits a kernel must visit, and in which of them it need not test the mask.

A kernel walks over tiles of `block_q` queries and `block_k` keys. From the extremes of each rule inside a tile follow
two matrices of booleans, one entry a tile: `some` (a pair may be seen) and `every` (all pairs are seen). Of each row
of tiles only two intervals are kept: [low, high) holds every tile with `some`, and [full_low, full_high), inside of
it, is the first run of tiles with `every`. So causal masks, windows, prefixes and packed documents cost what they
show, and the mask is tested at their edges alone. (Interval per row: kvax; extremes of ranges per tile: tokamax.)

O(T + S) memory, and the square of the number of tiles for the two matrices. All layers of a network can share the
schedules of a mask: `attach` computes them once, for the tiles of every kernel that will ask, and the mask carries
them to `plan`.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.mask import TREE_WORD, Mask
from pallas_kernels.dot_product_attention.problem import Settings, mask_of

_LAST = jnp.iinfo(jnp.int32).max


@dataclass(frozen=True)
class Schedule:
    """Intervals of tiles, int32 (B or 1, tiles): 0 <= low <= full_low <= full_high <= high."""

    low: Int[Array, "#B tiles"]
    high: Int[Array, "#B tiles"]
    full_low: Int[Array, "#B tiles"]
    full_high: Int[Array, "#B tiles"]

    def stack(self) -> Int[Array, "#B tiles 4"]:
        """All four in one array, as a kernel loads them."""
        return jnp.stack(astuple(self), axis=-1)


class Tiling(NamedTuple):
    """How a kernel walks over the matrix of logits."""

    at_rest: Literal["queries", "keys"]
    """A tile of these stays, while tiles of the others are visited."""
    block_q: int
    block_k: int

    def name(self, queries: int, keys: int) -> str:
        """Of the operand that holds its schedule: with all that the schedule depends on, but the mask."""
        return f"schedule_of_{self.at_rest}_{queries}x{keys}_{self.block_q}x{self.block_k}"


def plan(operands: Arrays, settings: Settings, tiling: Tiling) -> Int[Array, "#B tiles 4"]:
    """The stacked schedule of a problem in normal form: what its mask carries, or else computed here."""
    queries, keys = operands["query"].shape[1], operands["key"].shape[1]
    carried = operands.get(tiling.name(queries, keys))
    return _computed(mask_of(operands, settings), queries, keys, tiling) if carried is None else carried


def attach(mask: Mask, queries: int, keys: int, tilings: Iterable[Tiling]) -> Mask:
    """The mask with its schedules for these tilings."""
    return replace(mask, schedules={t.name(queries, keys): _computed(mask, queries, keys, t) for t in tilings})


def _computed(mask: Mask, queries: int, keys: int, tiling: Tiling) -> Int[Array, "#B tiles 4"]:
    find = schedule if tiling.at_rest == "queries" else schedule_keys
    return find(mask, queries, keys, tiling.block_q, tiling.block_k).stack()


def schedule(mask: Mask, queries: int, keys: int, block_q: int, block_k: int) -> Schedule:
    """For each tile of queries, the tiles of keys it visits. No tile that reaches beyond the last key is full."""
    some, every = _tiles(mask, queries, keys, block_q, block_k)
    return _intervals(some, every & _whole(keys, block_k)[None, None, :])


def schedule_keys(mask: Mask, queries: int, keys: int, block_q: int, block_k: int) -> Schedule:
    """For each tile of keys, the tiles of queries it visits. No tile that reaches beyond the last query is full."""
    some, every = _tiles(mask, queries, keys, block_q, block_k)
    return _intervals(jnp.swapaxes(some, 1, 2), jnp.swapaxes(every, 1, 2) & _whole(queries, block_q)[None, None, :])


def _tiles(mask: Mask, queries: int, keys: int, block_q: int, block_k: int) -> tuple[Bool[Array, "#B Q K"], ...]:
    i, j = jnp.arange(queries)[None], jnp.arange(keys)[None]
    first, last = _lowest(j, block_k)[:, None, :], _highest(j, block_k)[:, None, :]  # keys of a tile
    some = jnp.ones((1, -(-queries // block_q), -(-keys // block_k)), bool)
    every = some

    given = mask.query_positions is not None
    at_q, at_k = (mask.query_positions, mask.key_positions) if given else (i, j)
    nearest = _lowest(at_k, block_k)[:, None, :] - _highest(at_q, block_q)[:, :, None]
    farthest = _highest(at_k, block_k)[:, None, :] - _lowest(at_q, block_q)[:, :, None]
    if mask.left is not None:
        some, every = some & (farthest >= -mask.left), every & (nearest >= -mask.left)
    if mask.right is not None:
        some, every = some & (nearest <= mask.right), every & (farthest <= mask.right)
    if mask.key_start is not None:
        some = some & (last >= _lowest(mask.key_start, block_q)[:, :, None])
        every = every & (first >= _highest(mask.key_start, block_q)[:, :, None])
    if mask.key_end is not None:
        some = some & (first < _highest(mask.key_end, block_q)[:, :, None])
        every = every & (last < _lowest(mask.key_end, block_q)[:, :, None])
    if mask.query_segments is not None:
        (q_least, q_low, q_high), (k_least, k_low, k_high) = (
            _segments(mask.query_segments, block_q),
            _segments(mask.key_segments, block_k),
        )
        q_least, q_low, q_high = q_least[:, :, None], q_low[:, :, None], q_high[:, :, None]
        k_least, k_low, k_high = k_least[:, None, :], k_low[:, None, :], k_high[:, None, :]
        some = some & (jnp.maximum(q_low, k_low) <= jnp.minimum(q_high, k_high))
        every = every & (q_least >= 0) & (q_least == q_high) & (k_least == q_least) & (k_high == q_high)
    if mask.ancestors is not None:
        start = mask.tree_start[:, None, None]
        some = some & (first < start + TREE_WORD * mask.ancestors.shape[-1])
        every = every & (last < start)
    if mask.dense is not None:
        every = every & False
    return some, every


def _intervals(some: Bool[Array, "#B R C"], every: Bool[Array, "#B R C"]) -> Schedule:
    columns = some.shape[-1]
    at = jnp.arange(columns)
    low = jnp.min(jnp.where(some, at, columns), axis=-1)
    high = jnp.max(jnp.where(some, at + 1, 0), axis=-1)
    low = jnp.minimum(low, high)
    every = every & (at >= low[..., None]) & (at < high[..., None])
    full_low = jnp.min(jnp.where(every, at, columns), axis=-1)
    full_high = jnp.min(jnp.where(~every & (at > full_low[..., None]), at, columns), axis=-1)
    none = full_low >= high
    full_low, full_high = jnp.where(none, high, full_low), jnp.where(none, high, jnp.minimum(full_high, high))
    return Schedule(*(x.astype(jnp.int32) for x in (low, high, full_low, full_high)))


def _whole(length: int, block: int) -> Bool[Array, "tiles"]:
    return (jnp.arange(-(-length // block)) + 1) * block <= length


def _segments(segments: Int[Array, "#B L"], block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each tile: its least segment, its least segment that is no padding, and its greatest (of padding: -1)."""
    real = jnp.where(segments >= 0, segments, _LAST)
    return _lowest(segments, block), _lowest(real, block), jnp.maximum(_highest(segments, block), -1)


def _lowest(x: Int[Array, "#B L"], block: int) -> Int[Array, "#B tiles"]:
    return _by_tile(x, block).min(-1)


def _highest(x: Int[Array, "#B L"], block: int) -> Int[Array, "#B tiles"]:
    return _by_tile(x, block).max(-1)


def _by_tile(x: Int[Array, "#B L"], block: int) -> Int[Array, "#B tiles block"]:
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)), mode="edge")
    return x.reshape(x.shape[0], -1, block)
