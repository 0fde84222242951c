r"""Attention in plain JAX that never holds the T x S matrix: tiles of logits, recomputed by each derivative.

A tile is some queries against some keys. The forward pass goes over the tiles of a row block with the online softmax
(Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022, algorithm 1): with the running maximum m and sum l,

    m' = max(m, max_j s_j),   l' = l e^{m - m'} + sum_j e^{s_j - m'},   acc' = acc e^{m - m'} + sum_j e^{s_j - m'} v_j

The derivatives know lse = log sum_j e^{s_j}, so that p_j = e^{s_j - lse} needs no second softmax. With
delta = out . dout - dlse they are

    ds_j = p_j (dout . v_j - delta)                 dv_j = p_j dout        (and dq, dk, dbias follow from ds)
    tlse = sum_j p_j ts_j                           tout = sum_j p_j (ts_j v_j + tv_j) - tlse out

Tiles that the mask leaves empty are skipped. On a CPU a loop goes over batch and key heads, so that each product is a
plain matrix product whose tile stays in the cache; on an accelerator all heads of a tile are one batched product.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.derivatives import Arrays, Rules
from pallas_kernels.dot_product_attention.mask import ARRAYS
from pallas_kernels.dot_product_attention.problem import Settings, accumulator, mask_of
from pallas_kernels.dot_product_attention.schedule import schedule

# The layout of this file, with N = K G heads: queries (B,K,G,T,*), keys (B,K,S,*), bias and mask (#B,#K,#G,#T,#S).
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
        return Tiles(*((queries, keys) if whole else (_even(queries, 1024), _even(keys, 1024))), by_head=False)
    if batch * heads * queries * keys <= 2**21:
        return Tiles(queries, keys, by_head=False)
    skips = bool(mask_of(operands, settings).rules - {"dense"})
    if skips and min(queries, keys) < 1024:  # small enough to leave out what is not seen
        rows, columns = 128, 128
    else:
        rows, columns = 512, (512 if skips else 1024) if forward else 256
    return Tiles(_even(queries, max(16, rows // (heads // key_heads))), _even(keys, columns), by_head=True)


def _even(length: int, most: int) -> int:
    """The size of the fewest equal blocks of at most `most` that cover `length`."""
    count = -(-length // most)
    size = -(-length // count)
    return size if count == 1 else -(-size // 8) * 8


# The three rules.


def forward(operands: Arrays, settings: Settings, tiles: Tiles) -> tuple[jax.Array, jax.Array]:
    """(out, lse) of a problem in normal form."""
    dtype = accumulator(operands)
    x, grid = _arrange(operands, {}, settings, tiles)

    def head(x):
        def row_block(i):
            rows = _block(x, ROW_AXIS, i, tiles.rows)
            *lead, _ = rows["query"].shape

            def step(j, carry):
                top, total, acc = carry
                tile = _block(rows, COLUMN_AXIS, j, tiles.columns)
                logits, _ = _logits(tile, settings, i, j, grid, tiles)
                new = jnp.maximum(top, logits.max(-1))
                finite = jnp.where(new == -jnp.inf, 0.0, new)
                weights = jnp.exp(logits - finite[..., None])
                shrink = jnp.exp(top - finite)
                acc = acc * shrink[..., None] + _product("bkgrc,bkcv->bkgrv", weights, tile["value"])
                return new, total * shrink + weights.sum(-1), acc

            if "sinks" in x:  # a key of logit `sink` and value 0
                carry = jnp.broadcast_to(x["sinks"][..., None].astype(dtype), lead), jnp.ones(lead, dtype)
            else:
                carry = jnp.full(lead, -jnp.inf, dtype), jnp.zeros(lead, dtype)
            acc = jnp.zeros((*lead, x["value"].shape[-1]), dtype)
            top, total, acc = _columns(x, i, grid, tiles, step, (*carry, acc))
            some = total > 0
            safe = jnp.where(some, total, 1.0)
            out = jnp.where(some[..., None], acc / safe[..., None], 0.0)
            return out.astype(operands["query"].dtype), jnp.where(some, top + jnp.log(safe), -jnp.inf)

        return _row_blocks(row_block, grid)

    return tuple(_restore(y, grid) for y in _heads(head, x, grid, tiles))


def tangent(
    tangents: Arrays, operands: Arrays, outputs: tuple, settings: Settings, tiles: Tiles
) -> tuple[jax.Array, jax.Array]:
    """Tangents of (out, lse) for the tangents of the operands that move."""
    dtype = accumulator(operands)
    out, lse = outputs
    given = {f"t{name}": value for name, value in tangents.items()}
    x, grid = _arrange(operands, {"out": out, "lse": lse, **given}, settings, tiles)

    def head(x):
        def row_block(i):
            rows = _block(x, ROW_AXIS, i, tiles.rows)

            def step(j, carry):
                acc, mean = carry
                tile = _block(rows, COLUMN_AXIS, j, tiles.columns)
                logits, slope = _logits(tile, settings, i, j, grid, tiles)
                weights = jnp.exp(logits - tile["lse"][..., None])
                moved = jnp.zeros((), dtype)
                if "tquery" in tile:
                    moved += _product("bkgrh,bkch->bkgrc", tile["tquery"], tile["key"])
                if "tkey" in tile:
                    moved += _product("bkgrh,bkch->bkgrc", tile["query"], tile["tkey"])
                moved *= settings.scale * slope
                if "tbias" in tile:
                    moved += tile["tbias"].astype(dtype)
                change = jnp.where(weights > 0, weights * moved, 0.0)
                acc += _product("bkgrc,bkcv->bkgrv", change, tile["value"])
                if "tvalue" in tile:
                    acc += _product("bkgrc,bkcv->bkgrv", weights, tile["tvalue"])
                return acc, mean + change.sum(-1)

            mean = jnp.zeros(rows["lse"].shape, dtype)
            if "tsinks" in x:
                sink = jnp.exp(x["sinks"][..., None].astype(dtype) - rows["lse"])
                mean += jnp.where(sink > 0, sink * x["tsinks"][..., None].astype(dtype), 0.0)
            acc = jnp.zeros(rows["out"].shape, dtype)
            acc, mean = _columns(x, i, grid, tiles, step, (acc, mean))
            return (acc - mean[..., None] * rows["out"]).astype(out.dtype), mean

        return _row_blocks(row_block, grid)

    return tuple(_restore(y, grid) for y in _heads(head, x, grid, tiles))


def backward(
    cotangents: tuple, operands: Arrays, outputs: tuple, wanted: tuple[str, ...], settings: Settings, tiles: Tiles
) -> Arrays:
    """Cotangents of the operands named in `wanted`."""
    dtype = accumulator(operands)
    (dout, dlse), (out, lse) = cotangents, outputs
    delta = (out.astype(dtype) * dout).sum(-1) - dlse
    x, grid = _arrange(operands, {"dout": dout, "lse": lse, "delta": delta}, settings, tiles)

    def head(x, dbias):
        sums = {name: jnp.zeros(x[name].shape, dtype) for name in ("key", "value") if name in wanted}
        if "bias" in wanted:
            sums["bias"] = dbias

        def row_block(sums, i):
            rows = _block(x, ROW_AXIS, i, tiles.rows)

            def step(j, carry):
                dquery, sums = carry
                tile = _block(rows, COLUMN_AXIS, j, tiles.columns)
                logits, slope = _logits(tile, settings, i, j, grid, tiles)
                weights = jnp.exp(logits - tile["lse"][..., None])
                sums = dict(sums)
                if "value" in sums:
                    part = _product("bkgrc,bkgrv->bkcv", weights, tile["dout"])
                    sums["value"] = _add(sums["value"], part, {2: j * tiles.columns})
                change = _product("bkgrv,bkcv->bkgrc", tile["dout"], tile["value"])
                change = weights * (change - tile["delta"][..., None])
                if "bias" in sums:
                    shared = [axis for axis, size in enumerate(x["bias"].shape) if size == 1]
                    part = change.sum(shared, keepdims=True)
                    sums["bias"] = _add(sums["bias"], part, {3: i * tiles.rows, 4: j * tiles.columns})
                change *= settings.scale * slope
                if "key" in sums:
                    part = _product("bkgrc,bkgrh->bkch", change, tile["query"])
                    sums["key"] = _add(sums["key"], part, {2: j * tiles.columns})
                if "query" in wanted:
                    dquery += _product("bkgrc,bkch->bkgrh", change, tile["key"])
                return dquery, sums

            dquery = jnp.zeros(rows["query"].shape if "query" in wanted else (), dtype)
            dquery, sums = _columns(x, i, grid, tiles, step, (dquery, sums))
            return sums, dquery

        if grid.row_blocks == 1:
            sums, dquery = row_block(sums, 0)
        else:
            sums, dquery = lax.scan(row_block, sums, jnp.arange(grid.row_blocks))
            dquery = _joined(dquery) if "query" in wanted else dquery[0]
        return {**sums, "query": dquery}

    found = {}
    if any(name in wanted for name in ("query", "key", "value", "bias")):
        if tiles.by_head:
            found = _backward_heads(head, x, grid, wanted, dtype)
        else:
            found = head(x, jnp.zeros(x["bias"].shape, dtype) if "bias" in wanted else None)
    result = {}
    if "query" in wanted:
        result["query"] = _restore(found["query"], grid)
    for name in ("key", "value"):
        if name in wanted:
            result[name] = jnp.swapaxes(found[name], 1, 2)[:, : grid.keys]
    if "bias" in wanted:
        b, k, g, t, s = found["bias"].shape
        result["bias"] = found["bias"].reshape(b, k * g, t, s)[:, :, : grid.queries, : grid.keys]
    if "sinks" in wanted:
        sinks = operands["sinks"].astype(dtype)[:, None, :]
        part = jnp.exp(sinks - lse) * delta  # an empty row has lse = sink: the whole weight is the sink's
        result["sinks"] = -part.sum(1)
    return {name: _like(result[name], operands[name]) for name in wanted}


# One tile.


def _logits(tile: Arrays, settings: Settings, i, j, grid: "_Grid", tiles: Tiles) -> tuple[jax.Array, jax.Array | float]:
    """The logits (B,K,G,R,C) of a tile, -inf where not seen, and the slope of the soft cap."""
    logits = settings.scale * _product("bkgrh,bkch->bkgrc", tile["query"], tile["key"])
    slope = 1.0
    if settings.soft_cap is not None:
        tanh = jnp.tanh(logits / settings.soft_cap)
        logits, slope = settings.soft_cap * tanh, 1.0 - tanh * tanh
    if "bias" in tile:
        logits += tile["bias"].astype(logits.dtype)
    rows = i * tiles.rows + jnp.arange(tiles.rows)
    columns = j * tiles.columns + jnp.arange(tiles.columns)
    arrays = {name: tile[name] for name in ARRAYS if name in tile}
    if "dense" in arrays:
        b, k, g, *pairs = arrays["dense"].shape
        arrays["dense"] = arrays["dense"].reshape(b, k * g, *pairs)
    mask = mask_of(arrays, settings)
    if mask.rules:
        seen = mask.seen(rows, columns)
        b, n, *pairs = seen.shape
        key_heads = 1 if n == 1 else logits.shape[1]
        logits = jnp.where(seen.reshape(b, key_heads, n // key_heads, *pairs), logits, -jnp.inf)
    if grid.keys % tiles.columns:
        logits = jnp.where(columns < grid.keys, logits, -jnp.inf)
    return logits, slope


def _product(equation: str, one: jax.Array, two: jax.Array) -> jax.Array:
    """A product of the tile in the dtype of the narrower operand, summed in float32 (or float64)."""
    narrow = min(one.dtype, two.dtype, key=lambda d: d.itemsize)
    sums = jnp.promote_types(narrow, jnp.float32)
    return jnp.einsum(equation, one.astype(narrow), two.astype(narrow), preferred_element_type=sums)


# How the work is cut up and put together again.


class _Grid(NamedTuple):
    batch: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    row_blocks: int
    column_blocks: int


def _arrange(operands: Arrays, extra: Arrays, settings: Settings, tiles: Tiles) -> tuple[Arrays, _Grid]:
    """All arrays in the layout of this file, padded to whole tiles."""
    query, key = operands["query"], operands["key"]
    batch = max(x.shape[0] for x in operands.values())
    queries, heads = query.shape[1:3]
    keys, key_heads = key.shape[1:3]
    grid = _Grid(batch, queries, keys, heads, key_heads, -(-queries // tiles.rows), -(-keys // tiles.columns))
    group = heads // key_heads
    x = {}
    for name, value in {**operands, **extra}.items():
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
    mask = mask_of(operands, settings)
    if tiles.skip and grid.column_blocks > 1 and mask.rules - {"dense"}:
        plan = schedule(mask, queries, keys, tiles.rows, tiles.columns)
        x["low"], x["high"] = plan.low, plan.high
        if not tiles.by_head:
            x["low"], x["high"] = plan.low.min(0, keepdims=True), plan.high.max(0, keepdims=True)
    for axes, length, size in ((ROW_AXIS, queries, tiles.rows), (COLUMN_AXIS, keys, tiles.columns)):
        if length % size == 0:
            continue
        for name, axis in axes.items():
            if name in x and (name not in PAIRS or x[name].shape[axis] > 1):
                widths = [(0, 0)] * x[name].ndim
                widths[axis] = (0, -length % size)
                x[name] = jnp.pad(x[name], widths, constant_values=jnp.inf if name == "lse" else 0)
    return x, grid


def _heads(run: Callable, x: Arrays, grid: _Grid, tiles: Tiles):
    """`run` on everything at once, or on one key head of one sample after the other."""
    if not tiles.by_head:
        return run(x)
    found = lax.map(lambda unit: run(_unit(x, unit // grid.key_heads, unit % grid.key_heads)), _units(grid))
    return jax.tree.map(lambda y: y.reshape(grid.batch, grid.key_heads, *y.shape[3:]), found)


def _backward_heads(run: Callable, x: Arrays, grid: _Grid, wanted: tuple[str, ...], dtype) -> Arrays:
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


def _units(grid: _Grid) -> jax.Array:
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


def _block(x: Arrays, axes: dict[str, int], index, size: int) -> Arrays:
    """The block `index` of every array that has the axis; the others, and axes of size 1, stay as they are."""
    return {
        name: lax.dynamic_slice_in_dim(value, index * size, size, axis=axes[name])
        if name in axes and value.shape[axes[name]] > size
        else value
        for name, value in x.items()
    }


def _row_blocks(run: Callable, grid: _Grid):
    """`run` for each block of rows, joined along the axis of queries."""
    if grid.row_blocks == 1:
        return run(0)
    return jax.tree.map(_joined, lax.map(run, jnp.arange(grid.row_blocks)))


def _joined(blocks: jax.Array) -> jax.Array:
    """(blocks,B,K,G,R,...) -> (B,K,G,blocks R,...)."""
    blocks = jnp.moveaxis(blocks, 0, 3)
    return blocks.reshape(*blocks.shape[:3], -1, *blocks.shape[5:])


def _columns(x: Arrays, i, grid: _Grid, tiles: Tiles, step: Callable, carry):
    """The loop over the tiles of a block of rows."""
    if grid.column_blocks == 1:
        return step(0, carry)
    if "low" in x:
        return lax.fori_loop(x["low"][0, i], x["high"][0, i], step, carry)
    if not tiles.skip:
        step = jax.checkpoint(step)
    return lax.fori_loop(0, grid.column_blocks, step, carry)


def _add(total: jax.Array, part: jax.Array, starts: dict[int, int]) -> jax.Array:
    """total with `part` added at `starts`; along the other axes, and where it covers an axis, it starts at 0."""
    if total.shape == part.shape:
        return total + part
    start = [starts.get(axis, 0) if total.shape[axis] > part.shape[axis] else 0 for axis in range(total.ndim)]
    start = [jnp.asarray(index, jnp.int32) for index in start]
    here = lax.dynamic_slice(total, start, part.shape)
    return lax.dynamic_update_slice(total, here + part, start)


def _restore(y: jax.Array, grid: _Grid) -> jax.Array:
    """(B,K,G,T+,...) -> (B,T,N,...)."""
    y = jnp.moveaxis(y, 3, 1)[:, : grid.queries]
    return y.reshape(grid.batch, grid.queries, grid.heads, *y.shape[4:])


def _like(found: jax.Array, operand: jax.Array) -> jax.Array:
    """A cotangent in the dtype of its operand, summed over the batch if the whole batch shares the operand."""
    if operand.shape[0] == 1 and found.shape[0] > 1:
        found = found.sum(0, keepdims=True)
    return found.astype(operand.dtype)


# The rules of the implementation "xla", with the tiles of the platform that they are compiled for.


def _forward(operands, settings):
    def run(platform, operands):
        return forward(operands, settings, tiles_for(platform, operands, settings, forward=True))

    return _on_platform(run, operands)


def _tangent(tangents, operands, outputs, settings):
    def run(platform, tangents, operands, outputs):
        return tangent(tangents, operands, outputs, settings, tiles_for(platform, operands, settings))

    return _on_platform(run, tangents, operands, tuple(outputs))


def _backward(cotangents, operands, outputs, wanted, settings):
    def run(platform, cotangents, operands, outputs):
        return backward(cotangents, operands, outputs, wanted, settings, tiles_for(platform, operands, settings))

    return _on_platform(run, tuple(cotangents), operands, tuple(outputs))


def _on_platform(run: Callable, *arrays):
    return lax.platform_dependent(*arrays, cpu=functools.partial(run, "cpu"), default=functools.partial(run, "gpu"))


RULES = Rules(_forward, _tangent, _backward)


def _whole(operands: Arrays) -> Tiles:
    """Tiles for second derivatives: no loop whose length is data, for reverse mode has to go through it."""
    return Tiles(_even(operands["query"].shape[1], 1024), _even(operands["key"].shape[1], 1024), False, skip=False)


SECOND_ORDER = Rules(
    lambda operands, settings: forward(operands, settings, _whole(operands)),
    lambda tangents, operands, *rest: tangent(tangents, operands, *rest, _whole(operands)),
    lambda cotangents, operands, *rest: backward(cotangents, operands, *rest, _whole(operands)),
)
