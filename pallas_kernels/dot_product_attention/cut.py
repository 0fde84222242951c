"""How attention in plain JAX is cut into tiles, and put together again. Used by xla.py alone.

With N = K G heads, all arrays are arranged as: queries (B,K,G,T,*), keys (B,K,S,*), bias and mask (#B,#K,#G,#T,#S).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.mask import ARRAYS
from pallas_kernels.dot_product_attention.problem import DIFFERENTIABLE, Settings, mask_of
from pallas_kernels.dot_product_attention.schedule import Tiling, plan

QUERY_LIKE = ("query", "tquery", "out", "dout", "lse", "delta")
KEY_LIKE = ("key", "value", "tkey", "tvalue")
PAIRS = ("bias", "tbias", "dense")
ROW_AXIS = {
    **dict.fromkeys((*QUERY_LIKE, *PAIRS), 3),
    **dict.fromkeys(("key_start", "key_end", "query_segments", "query_positions", "ancestors"), 1),
}
COLUMN_AXIS = {
    **dict.fromkeys(PAIRS, 4),
    **dict.fromkeys(KEY_LIKE, 2),
    **dict.fromkeys(("key_segments", "key_positions"), 1),
}


class Tiles(NamedTuple):
    """How the work is cut up."""

    rows: int
    """Queries in a tile."""
    columns: int
    """Keys in a tile."""
    by_head: bool
    """Whether a loop goes over batch and key heads; otherwise they are axes of one batched product."""
    skip: bool = True
    """Whether the loop over keys leaves out empty tiles: its length is then data, which reverse mode does not take."""


def tiles_for(platform: str, operands: Arrays, settings: Settings, *, forward: bool = False) -> Tiles:
    """Tile sizes for a platform and the shapes of a problem (measured: benchmarks/attention.py)."""
    batch, queries, heads, _ = operands["query"].shape
    keys, key_heads = operands["key"].shape[1:3]
    if platform != "cpu":
        whole = batch * heads * queries * keys <= 2**24
        return Tiles(*((queries, keys) if whole else (even(queries, 1024), even(keys, 1024))), by_head=False)
    if batch * heads * queries * keys <= 2**21:
        return Tiles(queries, keys, by_head=False)
    skips = bool(mask_of(operands, settings).rules - {"dense"})
    if skips and min(queries, keys) < 1024:  # small enough to leave out what is not seen
        rows, columns = 128, 128
    else:
        rows, columns = 512, (512 if skips else 1024) if forward else 256
    return Tiles(even(queries, max(16, rows // (heads // key_heads))), even(keys, columns), by_head=True)


def even(length: int, most: int) -> int:
    """The size of the fewest equal blocks of at most `most` that cover `length`."""
    count = -(-length // most)
    size = -(-length // count)
    return size if count == 1 else -(-size // 8) * 8


class Grid(NamedTuple):
    """Sizes of a problem, and how many blocks of queries and of keys it is cut into."""

    batch: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    row_blocks: int
    column_blocks: int


def arrange(operands: Arrays, extra: Arrays, settings: Settings, tiles: Tiles) -> tuple[Arrays, Grid]:
    """All arrays in the arrangement of this file, padded to whole tiles."""
    query, key = operands["query"], operands["key"]
    batch = max(x.shape[0] for x in operands.values())
    queries, heads = query.shape[1:3]
    keys, key_heads = key.shape[1:3]
    grid = Grid(batch, queries, keys, heads, key_heads, -(-queries // tiles.rows), -(-keys // tiles.columns))
    group = heads // key_heads
    x = {}
    rules = {name: operands[name] for name in (*DIFFERENTIABLE, *ARRAYS) if name in operands}
    for name, value in {**rules, **extra}.items():
        if name in QUERY_LIKE:
            if name == "lse":  # so that the weights of an empty row are exp(-inf) = 0
                value = jnp.where(value == -jnp.inf, jnp.inf, value)
            value = jnp.broadcast_to(value, (batch, *value.shape[1:]))
            value = value.reshape(batch, queries, key_heads, group, *value.shape[3:])
            value = jnp.moveaxis(value, 1, 3)
        elif name in KEY_LIKE:
            value = jnp.broadcast_to(value, (batch, *value.shape[1:]))
            value = jnp.swapaxes(value, 1, 2)
        elif name in PAIRS:
            b, n, *pairs = value.shape
            value = value.reshape(b, *((1, 1) if n == 1 else (key_heads, group)), *pairs)
        elif name in ("sinks", "tsinks"):
            value = value.reshape(-1, key_heads, group)
        x[name] = value
    for tiling in tilings(operands, settings, tiles):
        low, high, *_ = jnp.moveaxis(plan(operands, settings, tiling), -1, 0)
        x["low"], x["high"] = (low, high) if tiles.by_head else (low.min(0)[None], high.max(0)[None])
    for axes, length, size in ((ROW_AXIS, queries, tiles.rows), (COLUMN_AXIS, keys, tiles.columns)):
        if length % size == 0:
            continue
        for name, axis in axes.items():
            if name in x and (name not in PAIRS or x[name].shape[axis] > 1):
                widths = [(0, 0)] * x[name].ndim
                widths[axis] = (0, -length % size)
                x[name] = jnp.pad(x[name], widths, constant_values=jnp.inf if name == "lse" else 0)
    return x, grid


def tilings(operands: Arrays, settings: Settings, tiles: Tiles) -> list[Tiling]:
    """The one tiling whose schedule is needed, if any is."""
    skips = tiles.skip and operands["key"].shape[1] > tiles.columns and mask_of(operands, settings).rules - {"dense"}
    return [Tiling("queries", tiles.rows, tiles.columns)] if skips else []


def over_heads(run: Callable, x: Arrays, grid: Grid, tiles: Tiles):
    """`run` on everything at once, or on one key head of one sample after the other."""
    if not tiles.by_head:
        return run(x)
    found = lax.map(lambda unit: run(_unit(x, unit // grid.key_heads, unit % grid.key_heads)), _units(grid))
    return jax.tree.map(lambda y: y.reshape(grid.batch, grid.key_heads, *y.shape[3:]), found)


def over_heads_backward(run: Callable, x: Arrays, grid: Grid, wanted: tuple[str, ...], dtype) -> Arrays:
    """The same with the gradient of a bias, which several heads may share, carried along."""

    def step(dbias, unit):
        at = unit // grid.key_heads, unit % grid.key_heads
        part = None if dbias is None else _unit({"bias": dbias}, *at)["bias"]
        found = run(_unit(x, *at), part)
        if dbias is not None:
            start = [index if size > 1 else 0 for index, size in zip(at, dbias.shape, strict=False)]
            dbias = lax.dynamic_update_slice(dbias, found.pop("bias"), (*start, 0, 0, 0))
        return dbias, found

    dbias, found = lax.scan(step, jnp.zeros(x["bias"].shape, dtype) if "bias" in wanted else None, _units(grid))
    found = {name: y.reshape(grid.batch, grid.key_heads, *y.shape[3:]) for name, y in found.items() if y.ndim > 1}
    return {**found, "bias": dbias}


def _units(grid: Grid) -> jax.Array:
    return jnp.arange(grid.batch * grid.key_heads)


def _unit(x: Arrays, batch, head) -> Arrays:
    """The arrays of one key head of one sample; axes of size 1 stay as they are."""
    found = {}
    for name, value in x.items():
        if value.shape[0] > 1:
            value = lax.dynamic_slice_in_dim(value, batch, 1, axis=0)
        if name in (*QUERY_LIKE, *KEY_LIKE, *PAIRS, "sinks", "tsinks") and value.shape[1] > 1:
            value = lax.dynamic_slice_in_dim(value, head, 1, axis=1)
        found[name] = value
    return found


def block_of(x: Arrays, axes: dict[str, int], index, size: int) -> Arrays:
    """The block `index` of every array that has the axis; the others, and axes of size 1, stay as they are."""
    return {
        name: lax.dynamic_slice_in_dim(value, index * size, size, axis=axes[name])
        if name in axes and value.shape[axes[name]] > size
        else value
        for name, value in x.items()
    }


def over_rows(run: Callable, grid: Grid):
    """`run` for each block of rows, joined along the axis of queries."""
    if grid.row_blocks == 1:
        return run(0)
    return jax.tree.map(joined, lax.map(run, jnp.arange(grid.row_blocks)))


def joined(blocks: jax.Array) -> jax.Array:
    """(blocks,B,K,G,R,...) -> (B,K,G,blocks R,...)."""
    blocks = jnp.moveaxis(blocks, 0, 3)
    return blocks.reshape(*blocks.shape[:3], -1, *blocks.shape[5:])


def over_columns(x: Arrays, i, grid: Grid, tiles: Tiles, step: Callable, carry):
    """The loop over the tiles of a block of rows."""
    if grid.column_blocks == 1:
        return step(0, carry)
    if "low" in x:
        return lax.fori_loop(x["low"][0, i], x["high"][0, i], step, carry)
    if not tiles.skip:
        step = jax.checkpoint(step)
    return lax.fori_loop(0, grid.column_blocks, step, carry)


def add_block(total: jax.Array, part: jax.Array, starts: dict[int, int]) -> jax.Array:
    """total with `part` added at `starts`; along the other axes, and where it covers an axis, it starts at 0."""
    if total.shape == part.shape:
        return total + part
    start = [starts.get(axis, 0) if total.shape[axis] > part.shape[axis] else 0 for axis in range(total.ndim)]
    start = [jnp.asarray(index, jnp.int32) for index in start]
    here = lax.dynamic_slice(total, start, part.shape)
    return lax.dynamic_update_slice(total, here + part, start)


def restore(y: jax.Array, grid: Grid) -> jax.Array:
    """(B,K,G,T+,...) -> (B,T,N,...)."""
    y = jnp.moveaxis(y, 3, 1)[:, : grid.queries]
    return y.reshape(grid.batch, grid.queries, grid.heads, *y.shape[4:])
