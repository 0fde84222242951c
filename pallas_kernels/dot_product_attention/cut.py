"""How attention in plain JAX is cut into tiles, and put together again. Used by xla.py alone.

With N = K G heads, all arrays are arranged as: queries (B,K,G,T,*), keys (B,K,S,*), bias and mask (#B,#K,#G,#T,#S).
"""

import functools
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


LOGITS = 2**26
"""The most logits that are held at once where tiles are batched, whatever the batch and the heads: 256 MiB of them."""


class Tiles(NamedTuple):
    """How the work is cut up."""

    rows: int
    """Queries in a tile."""
    columns: int
    """Keys in a tile."""
    units: int | None = None
    """How many key heads of samples a tile holds at most, a loop going over the rest of them; None: all at once."""
    skip: bool = True
    """Whether the loop over keys leaves out empty tiles: its length is then data, which reverse mode does not take."""


def tiles_for(platform: str, operands: Arrays, settings: Settings, *, forward: bool = False) -> Tiles:
    """Tile sizes for a platform and the shapes of a problem (measured: benchmarks/attention.py)."""
    batch = max(x.shape[0] for x in operands.values())
    queries, heads = operands["query"].shape[1:3]
    keys, key_heads = operands["key"].shape[1:3]
    if platform != "cpu":
        return Tiles(queries, keys) if batch * heads * queries * keys <= 2**24 else batched(operands)
    if batch * heads * queries * keys <= 2**21:
        return Tiles(queries, keys)
    skips = bool(mask_of(operands, settings).rules - {"dense"})
    if skips and min(queries, keys) < 1024:  # small enough to leave out what is not seen
        rows, columns = 128, 128
    else:
        rows, columns = 512, (512 if skips else 1024) if forward else 256
    return Tiles(even(queries, max(16, rows // (heads // key_heads))), even(keys, columns), units=1)


def batched(operands: Arrays, *, skip: bool = True) -> Tiles:
    """Tiles of 1024 x 1024 for as many heads as `LOGITS` allows, and of fewer queries where one group is too many."""
    queries, heads = operands["query"].shape[1:3]
    keys, key_heads = operands["key"].shape[1:3]
    group, columns = heads // key_heads, even(keys, 1024)
    rows = even(queries, min(1024, max(8, LOGITS // (group * columns) // 8 * 8)))
    return Tiles(rows, columns, units=max(1, LOGITS // (group * rows * columns)), skip=skip)


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
        x["low"], x["high"], *_ = jnp.moveaxis(plan(operands, settings, tiling), -1, 0)
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


class Units(NamedTuple):
    """How many samples, and key heads of each, are taken together: divisors of their numbers."""

    batch: int
    key_heads: int


def units_of(grid: Grid, tiles: Tiles) -> Units:
    """As many as the tiles allow: samples with all of their heads if one fits, otherwise heads of one sample."""
    most = tiles.units or grid.batch * grid.key_heads
    if most < grid.key_heads:
        return Units(1, _divisor(grid.key_heads, most))
    return Units(_divisor(grid.batch, most // grid.key_heads), grid.key_heads)


def _divisor(number: int, most: int) -> int:
    return next(n for n in range(min(number, most), 0, -1) if number % n == 0)


def over_heads(run: Callable, x: Arrays, grid: Grid, tiles: Tiles):
    """`run` on everything at once, or on some key heads of some samples after the others."""
    units = units_of(grid, tiles)
    if units == (grid.batch, grid.key_heads):
        return run(x)
    found = lax.map(lambda at: run(_unit(x, at, units)), _places(grid, units))
    return jax.tree.map(functools.partial(_together, grid=grid, units=units), found)


def over_heads_backward(run: Callable, x: Arrays, grid: Grid, tiles: Tiles, wanted: tuple[str, ...], dtype) -> Arrays:
    """The same with the gradient of a bias, which several heads may share, carried along."""
    units = units_of(grid, tiles)
    dbias = jnp.zeros(x["bias"].shape, dtype) if "bias" in wanted else None
    if units == (grid.batch, grid.key_heads):
        return run(x, dbias)

    def step(dbias, at):
        part = None if dbias is None else _unit({"bias": dbias}, at, units)["bias"]
        found = run(_unit(x, at, units), part)
        if dbias is not None:
            dbias = _with_unit(dbias, found.pop("bias"), at, units)
        return dbias, found

    dbias, found = lax.scan(step, dbias, _places(grid, units))
    found = {name: _together(y, grid, units) for name, y in found.items() if y.ndim > 1}
    return {**found, "bias": dbias}


# Units take turns: the i-th of n holds samples i, i + n, i + 2 n, ..., so that a batch that is divided over devices
# keeps all of them busy, each with its own samples.


def _places(grid: Grid, units: Units) -> tuple[jax.Array, jax.Array]:
    """Which part of the batch, and which of the key heads, for each turn of the loop."""
    turns = [jnp.arange(grid.batch // units.batch), jnp.arange(grid.key_heads // units.key_heads)]
    return tuple(places.reshape(-1) for places in jnp.meshgrid(*turns, indexing="ij"))


def _unit(x: Arrays, at, units: Units) -> Arrays:
    """The arrays of one unit; axes of size 1 stay as they are."""
    found = {}
    for name, value in x.items():
        of_heads = name in (*QUERY_LIKE, *KEY_LIKE, *PAIRS, "sinks", "tsinks")
        for axis in range(2 if of_heads else 1):
            if value.shape[axis] > 1:
                parts = value.reshape(*value.shape[:axis], units[axis], -1, *value.shape[axis + 1 :])
                value = lax.dynamic_index_in_dim(parts, at[axis], axis + 1, keepdims=False)
        found[name] = value
    return found


def _with_unit(whole: jax.Array, part: jax.Array, at, units: Units) -> jax.Array:
    """`whole` with the part of one unit replaced."""
    sizes = [units[axis] if whole.shape[axis] > 1 else 1 for axis in range(2)]
    parts = whole.reshape(sizes[0], -1, sizes[1], whole.shape[1] // sizes[1], *whole.shape[2:])
    start = [index if size > 1 else 0 for index, size in zip(at, whole.shape, strict=False)]
    part = part[:, None, :, None]
    start = [0, start[0], 0, start[1], *[0] * (part.ndim - 4)]
    return lax.dynamic_update_slice(parts, part, [jnp.asarray(i, jnp.int32) for i in start]).reshape(whole.shape)


def _together(parts: jax.Array, grid: Grid, units: Units) -> jax.Array:
    """(turns, batch, key heads, ...) of all units as (B,K,...)."""
    parts = parts.reshape(grid.batch // units.batch, grid.key_heads // units.key_heads, *parts.shape[1:])
    parts = jnp.moveaxis(parts, (0, 1), (1, 3))
    return parts.reshape(grid.batch, grid.key_heads, *parts.shape[4:])


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
        return lax.fori_loop(x["low"][:, i].min(), x["high"][:, i].max(), step, carry)
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
