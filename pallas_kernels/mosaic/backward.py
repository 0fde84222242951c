r"""The backward pass on Hopper: two kernels that recompute the logits, deterministic and without atomics.

    dq     a tile of 128 queries at rest, keys and values streamed      x = q k^T,  dp = dout v^T,  dq += dx k
    dkv    a tile of 128 keys at rest, queries and dout streamed        x^T = k q^T,  dp^T = v dout^T,
                                                                        dv += p^T dout,  dk += dx^T q

with p and dx of tile.py. That is 7 products of matrices where one fused kernel needs 5, and in exchange nothing is
summed in an order that changes. Two consumer warpgroups of 64 rows each; dkv goes over all query heads that read its
key head, so the gradients of grouped keys and values are summed in registers.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.mosaic import tile as tiles
from pallas_kernels.mosaic.config import ROWS, WARPGROUPS, Config, tuned
from pallas_kernels.mosaic.forward import produce_keys
from pallas_kernels.mosaic.launch import TILED, Piece, Work, buffers, full, launch, load, of_batch, own_rows, vector
from pallas_kernels.mosaic.prepare import padded, prepare, refuse, row_statistics


def backward(
    cotangents: Sequence[jax.Array],
    operands: Arrays,
    outputs: Sequence[jax.Array],
    wanted: tuple[str, ...],
    settings: Settings,
    configs: Mapping[str, Config] | None = None,
) -> Arrays:
    """Cotangents of the operands named in `wanted` (query, key, value), of their shapes and dtypes.

    Raises NotImplementedError for what is not supported (see prepare.py).
    """
    refuse(operands, settings)
    head = operands["query"].shape[-1]
    streamed = padded(cotangents[0].astype(operands["query"].dtype), 1, 8), row_statistics(cotangents, outputs)
    found = {}
    if "query" in wanted:
        found["query"] = _dq(operands, settings, tuned("dq", head, configs), *streamed)
    if "key" in wanted or "value" in wanted:
        config = tuned("dkv", head, configs)
        found["key"], found["value"] = _dkv(operands, settings, config, *streamed)
    for name, x in found.items():
        x = x[:, : operands[name].shape[1]]
        if operands[name].shape[0] < x.shape[0]:  # shared by the whole batch
            x = x.astype(jnp.float32).sum(0, keepdims=True).astype(x.dtype)
        found[name] = x
    return {name: found[name] for name in wanted}


def _dq(operands: Arrays, settings: Settings, config: Config, dout: jax.Array, statistics: jax.Array) -> jax.Array:
    problem = prepare(operands, settings, config)
    (dq,) = launch(
        _dq_kernel,
        name="attention_dq",
        arrays=(problem.query, problem.key, problem.value, dout, statistics),
        problem=problem,
        settings=settings,
        outputs=(jax.ShapeDtypeStruct((problem.batch, *problem.query.shape[1:]), problem.query.dtype),),
        scratch=dict(
            q_smem=buffers(WARPGROUPS, ROWS, problem),
            dout_smem=buffers(WARPGROUPS, ROWS, problem),
            statistics_smem=plgpu.SMEM((WARPGROUPS, 2, ROWS), jnp.float32),
            k_smem=buffers(config.stages, config.block_k, problem),
            v_smem=buffers(config.stages, config.block_k, problem),
            rest_ready=plgpu.Barrier(num_arrivals=3, num_barriers=WARPGROUPS),
            k_ready=plgpu.Barrier(num_barriers=config.stages),
            v_ready=plgpu.Barrier(num_barriers=config.stages),
            k_free=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=config.stages),
            v_free=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=config.stages),
        ),
    )
    return dq


def _dq_kernel(work: Work, q_ref, k_ref, v_ref, dout_ref, statistics_ref, dq_ref, **scratch):
    consume = functools.partial(_consume_keys, work, q_ref, dout_ref, statistics_ref, dq_ref, **scratch)
    work.share_out(consume, functools.partial(produce_keys, work, k_ref, v_ref, **scratch))


def _consume_keys(
    work: Work, q_ref, dout_ref, statistics_ref, dq_ref, me, piece: Piece, *,
    q_smem, dout_smem, statistics_smem, k_smem, v_smem, rest_ready, k_ready, v_ready, k_free, v_free,
):  # fmt: skip
    first, rows = own_rows(piece, me)
    q, dout, statistics = q_smem.at[me], dout_smem.at[me], statistics_smem.at[me]
    for source, target in (
        (of_batch(q_ref, piece.batch).at[rows, piece.head], q),
        (dout_ref.at[piece.batch, rows, piece.head], dout),
        (statistics_ref.at[piece.batch, piece.head, :, rows], statistics),
    ):
        plgpu.copy_gmem_to_smem(source, target, rest_ready.at[me])
    at_rest = work.vectors(tiles.ROWS, piece, first, ROWS)
    plgpu.barrier_wait(rest_ready.at[me])
    lse2, delta = (load(statistics.at[i], layout=vector(0)) for i in range(2))

    def visit(member, step, nth, dq):
        slot = work.slot(piece, nth)
        k, v = k_smem.at[slot], v_smem.at[slot]
        plgpu.barrier_wait(k_ready.at[slot])

        def products(x_ref, dp_ref):
            plgpu.wgmma(x_ref, q, k.T)
            plgpu.barrier_wait(v_ready.at[slot])
            plgpu.wgmma(dp_ref, dout, v.T)
            return x_ref[...], dp_ref[...]

        accumulator = plgpu.ACC((ROWS, work.problem.config.block_k), jnp.float32)
        x, dp = pl.run_scoped(products, accumulator, accumulator)
        plgpu.barrier_arrive(v_free.at[slot])
        y, c = tiles.logits(x, work.settings)
        p = tiles.probabilities(work.hide(y, piece, step, first, at_rest, axis=0), c, lse2, 0)
        dx = tiles.product_cotangent(p, y, dp, delta, work.settings, 0).astype(k.dtype)
        dq = pl.run_state(lambda dq_ref: plgpu.wgmma(dq_ref, dx, k))(plgpu.ACC.init(dq))
        plgpu.barrier_arrive(k_free.at[slot])
        return dq

    dq = work.visit(piece, visit, full((ROWS, work.problem.head), 0.0, TILED))
    q[...] = (dq * work.settings.scale).astype(q.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q, dq_ref.at[piece.batch, rows, piece.head])
    plgpu.wait_smem_to_gmem(0)


def _dkv(operands: Arrays, settings: Settings, config: Config, dout: jax.Array, statistics: jax.Array):
    problem = prepare(operands, settings, config)
    return launch(
        _dkv_kernel,
        name="attention_dkv",
        arrays=(problem.query, problem.key, problem.value, dout, statistics),
        problem=problem,
        settings=settings,
        outputs=(jax.ShapeDtypeStruct((problem.batch, *problem.key.shape[1:]), problem.key.dtype),) * 2,
        scratch=dict(
            k_smem=buffers(WARPGROUPS, ROWS, problem),
            v_smem=buffers(WARPGROUPS, ROWS, problem),
            q_smem=buffers(config.stages, config.block_q, problem),
            dout_smem=buffers(config.stages, config.block_q, problem),
            statistics_smem=plgpu.SMEM((config.stages, 2, config.block_q), jnp.float32),
            rest_ready=plgpu.Barrier(num_arrivals=2, num_barriers=WARPGROUPS),
            q_ready=plgpu.Barrier(num_arrivals=2, num_barriers=config.stages),
            dout_ready=plgpu.Barrier(num_barriers=config.stages),
            free=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=config.stages),
        ),
    )


def _dkv_kernel(work: Work, q_ref, k_ref, v_ref, dout_ref, statistics_ref, dk_ref, dv_ref, **scratch):
    consume = functools.partial(_consume_queries, work, k_ref, v_ref, dk_ref, dv_ref, **scratch)
    work.share_out(consume, functools.partial(_produce_queries, work, q_ref, dout_ref, statistics_ref, **scratch))


def _produce_queries(
    work: Work, q_ref, dout_ref, statistics_ref, piece: Piece, *,
    q_smem, dout_smem, statistics_smem, q_ready, dout_ready, free, **_,
):  # fmt: skip
    def visit(member, step, nth, carry):
        slot, rows = work.slot(piece, nth), work.block(piece, step)
        head = piece.head * work.heads + member
        work.await_free(piece, nth, free)
        for source, target, ready in (
            (of_batch(q_ref, piece.batch).at[rows, head], q_smem, q_ready),
            (statistics_ref.at[piece.batch, head, :, rows], statistics_smem, q_ready),
            (dout_ref.at[piece.batch, rows, head], dout_smem, dout_ready),
        ):
            plgpu.copy_gmem_to_smem(source, target.at[slot], ready.at[slot])

    work.visit(piece, visit)


def _consume_queries(
    work: Work, k_ref, v_ref, dk_ref, dv_ref, me, piece: Piece, *,
    k_smem, v_smem, q_smem, dout_smem, statistics_smem, rest_ready, q_ready, dout_ready, free,
):  # fmt: skip
    shape = (ROWS, work.problem.config.block_q)
    first, rows = own_rows(piece, me)
    k, v = k_smem.at[me], v_smem.at[me]
    for ref, target in ((k_ref, k), (v_ref, v)):
        plgpu.copy_gmem_to_smem(of_batch(ref, piece.batch).at[rows, piece.head], target, rest_ready.at[me])
    at_rest = work.vectors(tiles.COLUMNS, piece, first, ROWS)
    plgpu.barrier_wait(rest_ready.at[me])

    def visit(member, step, nth, carry):
        dk, dv = carry
        slot = work.slot(piece, nth)
        q, dout = q_smem.at[slot], dout_smem.at[slot]
        plgpu.barrier_wait(q_ready.at[slot])

        def product(x_ref):
            plgpu.wgmma(x_ref, k, q.T)
            return x_ref[...]

        x = pl.run_scoped(product, plgpu.ACC(shape, jnp.float32))
        lse2 = load(statistics_smem.at[slot, 0], layout=vector(1))
        y, c = tiles.logits(x, work.settings)
        p = tiles.probabilities(work.hide(y, piece, step, first, at_rest, axis=1), c, lse2, 1)
        plgpu.barrier_wait(dout_ready.at[slot])

        def values(refs):
            dv_ref, dp_ref = refs
            plgpu.wgmma(dv_ref, p.astype(dout.dtype), dout)
            plgpu.wgmma(dp_ref, v, dout.T)

        dv, dp = pl.run_state(values)((plgpu.ACC.init(dv), plgpu.ACC.init(full(shape, 0.0, TILED))))
        delta = load(statistics_smem.at[slot, 1], layout=vector(1))  # not earlier: registers are scarce
        dx = tiles.product_cotangent(p, y, dp, delta, work.settings, 1).astype(q.dtype)
        dk = pl.run_state(lambda dk_ref: plgpu.wgmma(dk_ref, dx, q))(plgpu.ACC.init(dk))
        plgpu.barrier_arrive(free.at[slot])
        return dk, dv

    zeros = full((ROWS, work.problem.head), 0.0, TILED)
    dk, dv = work.visit(piece, visit, (zeros, zeros))
    k[...] = (dk * work.settings.scale).astype(k.dtype)
    v[...] = dv.astype(v.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(k, dk_ref.at[piece.batch, rows, piece.head])
    plgpu.copy_smem_to_gmem(v, dv_ref.at[piece.batch, rows, piece.head])
    plgpu.wait_smem_to_gmem(0)
