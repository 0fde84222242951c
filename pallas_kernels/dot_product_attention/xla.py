r"""Attention in plain JAX that never holds the T x S matrix: tiles of logits, recomputed by each derivative.

A tile is some queries against some keys. The forward pass goes over the tiles of a row block with the online softmax
(Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022, algorithm 1): with the running maximum m and sum l,

    m' = max(m, max_j s_j),   l' = l e^{m - m'} + sum_j e^{s_j - m'},   acc' = acc e^{m - m'} + sum_j e^{s_j - m'} v_j

The derivatives know lse = log sum_j e^{s_j}, so that p_j = e^{s_j - lse} needs no second softmax. With
delta = out . dout - dlse they are

    ds_j = p_j (dout . v_j - delta)                 dv_j = p_j dout        (and dq, dk, dbias follow from ds)
    tlse = sum_j p_j ts_j                           tout = sum_j p_j (ts_j v_j + tv_j) - tlse out

Tiles that the mask leaves empty are skipped. On a CPU a loop goes over batch and key heads, so that each product is a
plain matrix product whose tile stays in the cache; on an accelerator as many heads as a bounded tile holds are one
batched product.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.derivatives import Arrays, Rules
from pallas_kernels.dot_product_attention import cut
from pallas_kernels.dot_product_attention.cut import Tiles
from pallas_kernels.dot_product_attention.mask import ARRAYS
from pallas_kernels.dot_product_attention.problem import Settings, accumulator, mask_of
from pallas_kernels.dot_product_attention.schedule import Tiling

# The three rules.


def forward(operands: Arrays, settings: Settings, tiles: Tiles) -> tuple[jax.Array, jax.Array]:
    """(out, lse) of a problem in normal form."""
    dtype = accumulator(operands)
    x, grid = cut.arrange(operands, {}, settings, tiles)

    def head(x):
        def row_block(i):
            rows = cut.block_of(x, cut.ROW_AXIS, i, tiles.rows)
            *lead, _ = rows["query"].shape

            def step(j, carry):
                top, total, acc = carry
                tile = cut.block_of(rows, cut.COLUMN_AXIS, j, tiles.columns)
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
            top, total, acc = cut.over_columns(x, i, grid, tiles, step, (*carry, acc))
            some = total > 0
            safe = jnp.where(some, total, 1.0)
            out = jnp.where(some[..., None], acc / safe[..., None], 0.0)
            return out.astype(operands["query"].dtype), jnp.where(some, top + jnp.log(safe), -jnp.inf)

        return cut.over_rows(row_block, grid)

    return tuple(cut.restore(y, grid) for y in cut.over_heads(head, x, grid, tiles))


def tangent(
    tangents: Arrays, operands: Arrays, outputs: tuple, settings: Settings, tiles: Tiles
) -> tuple[jax.Array, jax.Array]:
    """Tangents of (out, lse) for the tangents of the operands that move."""
    dtype = accumulator(operands)
    out, lse = outputs
    given = {f"t{name}": value for name, value in tangents.items()}
    x, grid = cut.arrange(operands, {"out": out, "lse": lse, **given}, settings, tiles)

    def head(x):
        def row_block(i):
            rows = cut.block_of(x, cut.ROW_AXIS, i, tiles.rows)

            def step(j, carry):
                acc, mean = carry
                tile = cut.block_of(rows, cut.COLUMN_AXIS, j, tiles.columns)
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
            acc, mean = cut.over_columns(x, i, grid, tiles, step, (acc, mean))
            return (acc - mean[..., None] * rows["out"]).astype(out.dtype), mean

        return cut.over_rows(row_block, grid)

    return tuple(cut.restore(y, grid) for y in cut.over_heads(head, x, grid, tiles))


def backward(
    cotangents: tuple, operands: Arrays, outputs: tuple, wanted: tuple[str, ...], settings: Settings, tiles: Tiles
) -> Arrays:
    """Cotangents of the operands named in `wanted`."""
    dtype = accumulator(operands)
    (dout, dlse), (out, lse) = cotangents, outputs
    delta = (out.astype(dtype) * dout).sum(-1) - dlse
    x, grid = cut.arrange(operands, {"dout": dout, "lse": lse, "delta": delta}, settings, tiles)

    def head(x, dbias):
        sums = {name: jnp.zeros(x[name].shape, dtype) for name in ("key", "value") if name in wanted}
        if "bias" in wanted:
            sums["bias"] = dbias

        def row_block(sums, i):
            rows = cut.block_of(x, cut.ROW_AXIS, i, tiles.rows)

            def step(j, carry):
                dquery, sums = carry
                tile = cut.block_of(rows, cut.COLUMN_AXIS, j, tiles.columns)
                logits, slope = _logits(tile, settings, i, j, grid, tiles)
                weights = jnp.exp(logits - tile["lse"][..., None])
                sums = dict(sums)
                if "value" in sums:
                    part = _product("bkgrc,bkgrv->bkcv", weights, tile["dout"])
                    sums["value"] = cut.add_block(sums["value"], part, {2: j * tiles.columns})
                change = _product("bkgrv,bkcv->bkgrc", tile["dout"], tile["value"])
                change = weights * (change - tile["delta"][..., None])
                if "bias" in sums:
                    shared = [axis for axis, size in enumerate(x["bias"].shape) if size == 1]
                    part = change.sum(shared, keepdims=True)
                    sums["bias"] = cut.add_block(sums["bias"], part, {3: i * tiles.rows, 4: j * tiles.columns})
                change *= settings.scale * slope
                if "key" in sums:
                    part = _product("bkgrc,bkgrh->bkch", change, tile["query"])
                    sums["key"] = cut.add_block(sums["key"], part, {2: j * tiles.columns})
                if "query" in wanted:
                    dquery += _product("bkgrc,bkch->bkgrh", change, tile["key"])
                return dquery, sums

            dquery = jnp.zeros(rows["query"].shape if "query" in wanted else (), dtype)
            dquery, sums = cut.over_columns(x, i, grid, tiles, step, (dquery, sums))
            return sums, dquery

        if grid.row_blocks == 1:
            sums, dquery = row_block(sums, 0)
        else:
            sums, dquery = lax.scan(row_block, sums, jnp.arange(grid.row_blocks))
            dquery = cut.joined(dquery) if "query" in wanted else dquery[0]
        return {**sums, "query": dquery}

    found = {}
    if any(name in wanted for name in ("query", "key", "value", "bias")):
        found = cut.over_heads_backward(head, x, grid, tiles, wanted, dtype)
    result = {}
    if "query" in wanted:
        result["query"] = cut.restore(found["query"], grid)
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


def _logits(
    tile: Arrays, settings: Settings, i, j, grid: cut.Grid, tiles: Tiles
) -> tuple[jax.Array, jax.Array | float]:
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


def _like(found: jax.Array, operand: jax.Array) -> jax.Array:
    """A cotangent in the dtype of its operand, summed over the batch if the whole batch shares the operand."""
    if operand.shape[0] == 1 and found.shape[0] > 1:
        found = found.sum(0, keepdims=True)
    return found.astype(operand.dtype)


# The rules of the implementation "xla", with the tiles of the platform that they are compiled for.


def _forward(operands, settings):
    def run(platform, operands):
        return forward(operands, settings, cut.tiles_for(platform, operands, settings, forward=True))

    return _on_platform(run, operands)


def _tangent(tangents, operands, outputs, settings):
    def run(platform, tangents, operands, outputs):
        return tangent(tangents, operands, outputs, settings, cut.tiles_for(platform, operands, settings))

    return _on_platform(run, tangents, operands, tuple(outputs))


def _backward(cotangents, operands, outputs, wanted, settings):
    def run(platform, cotangents, operands, outputs):
        return backward(cotangents, operands, outputs, wanted, settings, cut.tiles_for(platform, operands, settings))

    return _on_platform(run, tuple(cotangents), operands, tuple(outputs))


def _on_platform(run: Callable, *arrays):
    return lax.platform_dependent(*arrays, cpu=functools.partial(run, "cpu"), default=functools.partial(run, "gpu"))


RULES = Rules(_forward, _tangent, _backward)


def tilings(operands: Arrays, settings: Settings) -> set[Tiling]:
    """Whose schedules the rules ask for on the platform that JAX runs on."""
    cuts = (cut.tiles_for(jax.default_backend(), operands, settings, forward=first) for first in (True, False))
    return {tiling for tiles in cuts for tiling in cut.tilings(operands, settings, tiles)}


def _whole(operands: Arrays) -> Tiles:
    """Tiles for second derivatives: no loop whose length is data, for reverse mode has to go through it."""
    return cut.batched(operands, skip=False)


SECOND_ORDER = Rules(
    lambda operands, settings: forward(operands, settings, _whole(operands)),
    lambda tangents, operands, *rest: tangent(tangents, operands, *rest, _whole(operands)),
    lambda cotangents, operands, *rest: backward(cotangents, operands, *rest, _whole(operands)),
)
