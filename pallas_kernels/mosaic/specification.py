"""What the Hopper kernels compute, as a plain JAX program that runs on a CPU: the executable specification.

The same problem in the same pieces: the arrays and bounds of prepare.py, the order of blocks, the arithmetic and the
mask of tile.py, tile by tile as in forward.py and backward.py. Only what Mosaic does is left out: copies, barriers and
the layout of registers. What can be wrong in a kernel and right here is data movement and synchronisation.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings, accumulator
from pallas_kernels.mosaic import tile as tiles
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.prepare import Prepared, padded, prepare, row_statistics


def forward(operands: Arrays, settings: Settings, config: Config) -> tuple[jax.Array, jax.Array]:
    """(out, lse) as `forward.forward` computes them, for any dtype and width."""
    problem = prepare(operands, settings, config)
    dtype = accumulator(operands)
    query, key, value = (_heads_first(x, problem) for x in (problem.query, problem.key, problem.value))

    def tile(first, q, rows, bounds, k, v, columns):
        def visit(step, carry):
            acc, m, total = carry
            start = tiles.visit(step, bounds) * config.block
            y, c = tiles.logits(_product(q, _block(k, start, config).T, dtype), settings)
            p, shrink, m = tiles.online_softmax(
                _hide(y, problem, bounds, step, start, first, rows, columns, axis=0), c, m
            )
            acc = acc * tiles.along(shrink, acc.shape, 0) + _product(p.astype(v.dtype), _block(v, start, config), dtype)
            return acc, m, total * shrink + p.sum(axis=1)

        start = jnp.zeros(q.shape, dtype), jnp.full(q.shape[:1], tiles.NOTHING, dtype), jnp.zeros(q.shape[:1], dtype)
        acc, m, total = lax.fori_loop(0, bounds[1] - bounds[0], visit, start)
        inverse, lse = tiles.normalised(total, m)
        return (acc * tiles.along(inverse, acc.shape, 0)).astype(q.dtype), lse

    group = problem.group
    out, lse = _everywhere(tile, problem, (query,), tiles.ROWS, (_repeat(key, group), _repeat(value, group)))
    return _rows_first(out, problem.queries), jnp.swapaxes(lse[..., : problem.queries], 1, 2)


def backward(
    cotangents: Sequence[jax.Array],
    operands: Arrays,
    outputs: Sequence[jax.Array],
    wanted: tuple[str, ...],
    settings: Settings,
    configs: tuple[Config, Config],
) -> Arrays:
    """Cotangents as `backward.backward` computes them, for any dtype and width; every operand has the whole batch."""
    statistics = row_statistics(cotangents, outputs)
    dq = _dq(operands, settings, configs[0], cotangents[0], statistics)
    dk, dv = _dkv(operands, settings, configs[1], cotangents[0], statistics)
    found = {"query": dq, "key": dk, "value": dv}
    return {name: found[name] for name in wanted}


def _dq(operands: Arrays, settings: Settings, config: Config, dout: jax.Array, statistics: jax.Array) -> jax.Array:
    problem = prepare(operands, settings, config)
    dtype = accumulator(operands)
    query, key, value, dout = (_heads_first(x, problem) for x in (problem.query, problem.key, problem.value, dout))

    def tile(first, q, dout, statistics, rows, bounds, k, v, columns):
        def visit(step, dq):
            start = tiles.visit(step, bounds) * config.block
            y, c = tiles.logits(_product(q, _block(k, start, config).T, dtype), settings)
            dp = _product(dout, _block(v, start, config).T, dtype)
            p = tiles.probabilities(
                _hide(y, problem, bounds, step, start, first, rows, columns, axis=0), c, statistics[:, 0], 0
            )
            dx = tiles.product_cotangent(p, y, dp, statistics[:, 1], settings, 0).astype(k.dtype)
            return dq + _product(dx, _block(k, start, config), dtype)

        dq = lax.fori_loop(0, bounds[1] - bounds[0], visit, jnp.zeros(q.shape, dtype))
        return (dq * settings.scale).astype(q.dtype)

    at_rest = query, dout, jnp.swapaxes(statistics, 2, 3)
    streamed = _repeat(key, problem.group), _repeat(value, problem.group)
    return _rows_first(_everywhere(tile, problem, at_rest, tiles.ROWS, streamed), problem.queries)


def _dkv(operands: Arrays, settings: Settings, config: Config, dout: jax.Array, statistics: jax.Array):
    problem = prepare(operands, settings, config)
    dtype = accumulator(operands)
    query, key, value, dout = (_heads_first(x, problem) for x in (problem.query, problem.key, problem.value, dout))

    def tile(first, k, v, columns, bounds, q, dout, statistics, rows):
        steps = bounds[1] - bounds[0]

        def visit(member, step, carry):
            dk, dv = carry
            start = tiles.visit(step, bounds) * config.block
            q_block, dout_block, lse2_delta = (_block(x[member], start, config) for x in (q, dout, statistics))
            y, c = tiles.logits(_product(k, q_block.T, dtype), settings)
            hidden = _hide(y, problem, bounds, step, start, first, columns, rows, axis=1)
            p = tiles.probabilities(hidden, c, lse2_delta[:, 0], 1)
            dv = dv + _product(p.astype(dout.dtype), dout_block, dtype)
            dx = tiles.product_cotangent(p, y, _product(v, dout_block.T, dtype), lse2_delta[:, 1], settings, 1)
            return dk + _product(dx.astype(q.dtype), q_block, dtype), dv

        def of_head(member, carry):
            return lax.fori_loop(0, steps, functools.partial(visit, member), carry)

        zeros = jnp.zeros(k.shape, dtype)
        dk, dv = lax.fori_loop(0, problem.group, of_head, (zeros, zeros))
        return (dk * settings.scale).astype(k.dtype), dv.astype(v.dtype)

    grouped = (query, dout, jnp.swapaxes(statistics, 2, 3))
    grouped = (x.reshape(x.shape[0], -1, problem.group, *x.shape[2:]) for x in grouped)
    dk, dv = _everywhere(tile, problem, (key, value), tiles.COLUMNS, tuple(grouped))
    return _rows_first(dk, problem.keys), _rows_first(dv, problem.keys)


def _everywhere(tile: Callable, problem: Prepared, at_rest: Sequence, names: Sequence[str], streamed: Sequence):
    """tile(first, *at_rest, its mask, bounds, *streamed, its mask) for each batch element, head and tile.

    `names` are those of the mask's arrays that go with what is at rest. Beyond the last row there are zeros, as a copy
    reads them.
    """
    config, batch = problem.config, problem.batch

    def split(x, axis):
        return x.reshape(*x.shape[:axis], problem.tiles, config.rest, *x.shape[axis + 1 :])

    def everyone(x):
        return jnp.broadcast_to(x, (batch, *x.shape[1:]))

    at_rest = tuple(split(padded(x, 2, config.rest), 2) for x in at_rest)
    streamed = tuple(padded(x, x.ndim - 2, config.block) for x in streamed)
    mask = {name: everyone(x) for name, x in problem.mask.items()}
    rest_mask = {name: split(x, 1) for name, x in mask.items() if name in names}
    streamed_mask = {name: x for name, x in mask.items() if name not in names}
    if problem.bounds is None:
        bounds = jnp.broadcast_to(jnp.array(problem.static_bounds(), jnp.int32), (batch, problem.tiles, 4))
    else:
        bounds = everyone(problem.bounds)

    def one(first, rest, rest_mask, bounds, streamed, streamed_mask):
        return tile(first, *rest, rest_mask, bounds, *streamed, streamed_mask)

    by_tile = jax.vmap(one, (0, 0, 0, 0, None, None))
    by_head = jax.vmap(by_tile, (None, 0, None, None, 0, None))
    first = jnp.arange(problem.tiles) * config.rest
    found = jax.vmap(by_head, (None, 0, 0, 0, 0, 0))(first, at_rest, rest_mask, bounds, streamed, streamed_mask)
    return jax.tree.map(lambda x: x.reshape(*x.shape[:2], -1, *x.shape[4:]), found)


def _hide(y, problem: Prepared, bounds, step, start, first, at_rest: dict, streamed: dict, axis: int):
    """The mask, in the boundary blocks; `start` is the first row of the block, `first` that of the tile at rest."""
    config = problem.config
    arrays = {name: tiles.along(x, y.shape, 0) for name, x in at_rest.items()}
    arrays |= {name: tiles.along(_block(x, start, config), y.shape, 1) for name, x in streamed.items()}
    key = lax.broadcasted_iota(jnp.int32, y.shape, 1 - axis) + (start if axis == 0 else first)
    visible = tiles.seen(key, arrays, problem.keys if axis == 0 else None)
    return jnp.where(step < tiles.boundary(bounds), tiles.hide(y, visible), y)


def _block(x, start, config: Config):
    return lax.dynamic_slice_in_dim(x, start, config.block, axis=0)


def _product(x, y, dtype):
    return jnp.matmul(x, y, preferred_element_type=dtype, precision=lax.Precision.HIGHEST)


def _heads_first(x: jax.Array, problem: Prepared) -> jax.Array:
    return jnp.broadcast_to(jnp.swapaxes(x, 1, 2), (problem.batch, x.shape[2], x.shape[1], x.shape[3]))


def _rows_first(x: jax.Array, rows: int) -> jax.Array:
    return jnp.swapaxes(x[:, :, :rows], 1, 2)


def _repeat(x: jax.Array, group: int) -> jax.Array:
    return jnp.repeat(x, group, axis=1)
