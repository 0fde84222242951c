r"""The forward pass on Hopper: FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608, algorithms 1 and 2) in Pallas.

A block of threads owns a tile of 128 queries. One warpgroup produces: it copies blocks of keys and values into a ring
of buffers. Two consume: each holds 64 queries, and does for each block

    x = q k^T               on the tensor core (wgmma), into registers
    p, a, m' = ...          online softmax (tile.py), in registers
    acc = a acc + p v       wgmma with p from registers

They take turns (ping-pong): while one has the tensor core, the other does its softmax. Keys and values have barriers of
their own, and the wait for the next keys hides behind the product with the values.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.mosaic import tile as tiles
from pallas_kernels.mosaic.config import ROWS, TILE, WARPGROUPS, Config, tuned
from pallas_kernels.mosaic.launch import TILED, Piece, Work, buffers, full, launch, of_batch, own_rows, vector
from pallas_kernels.mosaic.prepare import prepare, refuse


def forward(
    operands: Arrays, settings: Settings, configs: Mapping[str, Config] | None = None
) -> tuple[jax.Array, jax.Array]:
    """(out (B,T,N,H), lse (B,T,N) natural logarithm, float32) of a problem in normal form.

    Raises NotImplementedError for what is not supported (see prepare.py).
    """
    refuse(operands, settings)
    problem = prepare(operands, settings, tuned("forward", operands["query"].shape[-1], configs))
    config, (_, padded_queries, heads, head) = problem.config, problem.query.shape
    out, lse = launch(
        _kernel,
        name="attention_forward",
        arrays=(problem.query, problem.key, problem.value),
        problem=problem,
        settings=settings,
        outputs=(
            jax.ShapeDtypeStruct((problem.batch, padded_queries, heads, head), problem.query.dtype),
            jax.ShapeDtypeStruct((problem.batch, heads, problem.tiles * TILE), jnp.float32),
        ),
        scratch=dict(
            q_smem=buffers(WARPGROUPS, ROWS, problem),
            k_smem=buffers(config.stages, config.block_k, problem),
            v_smem=buffers(config.stages, config.block_k, problem),
            lse_smem=plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
            q_ready=plgpu.Barrier(num_barriers=WARPGROUPS),
            k_ready=plgpu.Barrier(num_barriers=config.stages),
            v_ready=plgpu.Barrier(num_barriers=config.stages),
            k_free=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=config.stages),
            v_free=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=config.stages),
            turn=plgpu.Barrier(num_arrivals=WARPGROUPS),
        ),
    )
    return out[:, : problem.queries], jnp.swapaxes(lse[:, :, : problem.queries], 1, 2)


def _kernel(work: Work, q_ref, k_ref, v_ref, out_ref, lse_ref, **scratch):
    consume = functools.partial(_consume, work, q_ref, out_ref, lse_ref, **scratch)
    work.share_out(consume, functools.partial(produce_keys, work, k_ref, v_ref, **scratch))


def produce_keys(work: Work, k_ref, v_ref, piece: Piece, *, k_smem, v_smem, k_ready, v_ready, k_free, v_free, **_):
    """Fills the ring with the blocks of keys and values that a tile of queries visits."""
    key_head = lax.div(piece.head, jnp.int32(work.problem.group))

    def visit(member, step, nth, carry):
        slot, rows = work.slot(piece, nth), work.block(piece, step)
        for ref, smem, ready, free in ((k_ref, k_smem, k_ready, k_free), (v_ref, v_smem, v_ready, v_free)):
            work.await_free(piece, nth, free)
            plgpu.copy_gmem_to_smem(of_batch(ref, piece.batch).at[rows, key_head], smem.at[slot], ready.at[slot])

    work.visit(piece, visit)


def _consume(
    work: Work, q_ref, out_ref, lse_ref, me, piece: Piece, *,
    q_smem, k_smem, v_smem, lse_smem, q_ready, k_ready, v_ready, k_free, v_free, turn,
):  # fmt: skip
    first, rows = own_rows(piece, me)
    q, at_rest = q_smem.at[me], work.vectors(tiles.ROWS, piece, first, ROWS)

    def take_turn():
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)

    def visit(member, step, nth, carry):
        acc, m, total = carry
        slot = work.slot(piece, nth)

        def product(x_ref):
            plgpu.wgmma(x_ref, q, k_smem.at[slot].T)
            take_turn()
            return x_ref[...]

        x = pl.run_scoped(product, plgpu.ACC((ROWS, work.problem.config.block_k), jnp.float32))
        plgpu.barrier_arrive(k_free.at[slot])

        y, c = tiles.logits(x, work.settings)
        p, shrink, m = tiles.online_softmax(work.hide(y, piece, step, first, at_rest, axis=0), c, m)
        acc *= tiles.along(shrink, acc.shape, 0)
        total = total * shrink + p.sum(axis=1)
        acc, m, total, p = lax.optimization_barrier((acc, m, total, p.astype(v_smem.dtype)))

        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(v_ready.at[slot])
        plgpu.barrier_wait(turn)

        def accumulate(acc_ref):
            plgpu.wgmma(acc_ref, p, v_smem.at[slot])

            @pl.when(step + 1 < piece.steps)
            def _():
                plgpu.barrier_wait(k_ready.at[work.slot(piece, nth + 1)])

        acc = pl.run_state(accumulate)(plgpu.ACC.init(acc))
        plgpu.barrier_arrive(v_free.at[slot])
        return acc, m, total

    plgpu.copy_gmem_to_smem(of_batch(q_ref, piece.batch).at[rows, piece.head], q, q_ready.at[me])
    plgpu.barrier_wait(q_ready.at[me])

    @pl.when(piece.steps > 0)
    def _():
        plgpu.barrier_wait(k_ready.at[work.slot(piece, 0)])

    pl.when(me == 1)(take_turn)
    zeros, nothing = full((ROWS,), 0.0, vector(0)), full((ROWS,), tiles.NOTHING, vector(0))
    acc, m, total = work.visit(piece, visit, (full((ROWS, work.problem.head), 0.0, TILED), nothing, zeros))
    pl.when(me == 0)(take_turn)

    inverse, lse = tiles.normalised(total, m)
    q[...] = (acc * tiles.along(inverse, acc.shape, 0)).astype(q.dtype)
    lse_smem.at[me][...] = lse
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q, out_ref.at[piece.batch, rows, piece.head])
    plgpu.copy_smem_to_gmem(lse_smem.at[me], lse_ref.at[piece.batch, piece.head, rows])
    plgpu.wait_smem_to_gmem(0)
