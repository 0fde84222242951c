"""What the kernels share: the launch, the pieces of work, and the mask of a tile in registers. The door to Mosaic GPU.

Mosaic's interface changes from one minor release of JAX to the next; what has changed, or will, is met here.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.mosaic import tile as tiles
from pallas_kernels.mosaic.config import CORES, ROWS, WARPGROUPS, Order, divide
from pallas_kernels.mosaic.prepare import Prepared

TILED = plgpu.Layout.WGMMA
"""How the 128 threads of a warpgroup share a tile."""


def vector(axis: int):
    """How they share a vector over one axis of a tile."""
    return plgpu.Layout.WGMMA.reduce(1 - axis)


def full(shape: Sequence[int], value: float, layout):
    """A float32 array in registers."""
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def buffers(count: int, rows: int, problem: Prepared):
    """Shared memory for `count` blocks of rows, laid out for wgmma."""
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((count, rows, problem.head), problem.query.dtype, transforms=transforms)


def of_batch(ref, batch):
    """The arrays of one batch element, from arrays that the whole batch may share."""
    return ref.at[batch if ref.shape[0] > 1 else 0]


_INDEX = inspect.signature(plgpu.load).parameters.get("idx")
NO_INDEX = ((),) if _INDEX is not None and _INDEX.default is inspect.Parameter.empty else ()
"""Until jax 0.10 a load takes an index beside the reference."""


def load(ref, **options) -> jax.Array:
    """What a reference into shared or global memory holds, in registers."""
    return plgpu.load(ref, *NO_INDEX, **options)


@dataclass(frozen=True)
class Piece:
    """One piece of work: a tile at rest of one batch element and head."""

    batch: Any
    head: Any
    """Query head, in dkv key head."""
    tile: Any
    bounds: tuple
    """low, high, full_low, full_high of the schedule."""
    past: Any
    """How many blocks the pieces before have streamed through the ring."""

    @property
    def steps(self):
        """Blocks to visit, for each query head."""
        return self.bounds[1] - self.bounds[0]


@dataclass(frozen=True)
class Work:
    """The work of one block of threads, and the references that its kernel reads bounds and masks from."""

    problem: Prepared
    settings: Settings
    order: Order
    blocks: int
    """Blocks of threads."""
    heads: int
    """Query heads that a piece goes over: one; in dkv all of the group."""
    mask: Mapping
    schedule: Any

    def share_out(self, consume: Callable, produce: Callable) -> None:
        """consume(me, piece) for each piece in both consumer warpgroups, produce(piece) in the producer."""
        registers = self.problem.config.registers
        me = lax.axis_index("warpgroup")

        @pl.when(me < WARPGROUPS)
        def _():
            plgpu.set_max_registers(registers[0], action="increase")
            self._each(functools.partial(consume, me))

        @pl.when(me == WARPGROUPS)
        def _():
            plgpu.set_max_registers(registers[1], action="decrease")
            self._each(produce)

    def _each(self, body: Callable) -> None:
        first = lax.axis_index("block")

        def one(n, past):
            pair, tile = self.order[first + n * self.blocks]
            batch, head = divide(pair, self.order.pairs // self.problem.batch)
            piece = Piece(batch, head, tile, self._bounds(batch, tile), past)
            body(piece)
            return past + self.heads * piece.steps

        if len(self.order) == self.blocks:
            one(0, jnp.int32(0))
        else:
            mine = lax.div(len(self.order) - first + (self.blocks - 1), self.blocks)
            lax.fori_loop(0, mine, one, jnp.int32(0))

    def _bounds(self, batch, tile) -> tuple:
        if self.schedule is None:
            return self.problem.static_bounds()
        bounds = of_batch(self.schedule, batch).at[tile]
        return tuple(bounds[i] for i in range(4))

    def slot(self, piece: Piece, nth):
        """The buffer of the ring that holds the nth block that a piece streams."""
        return lax.rem(piece.past + nth, jnp.int32(self.problem.config.stages))

    def await_free(self, piece: Piece, nth, barrier) -> None:
        """Waits until the consumers have left the buffer of the nth block."""

        @pl.when(piece.past + nth >= self.problem.config.stages)
        def _():
            plgpu.barrier_wait(barrier.at[self.slot(piece, nth)])

    def visit(self, piece: Piece, body: Callable, carry=None):
        """carry = body(member, step, nth, carry) for all steps of all query heads of a piece."""

        def of_head(member, carry):
            def one(step, carry):
                return body(member, step, member * piece.steps + step, carry)

            return lax.fori_loop(0, piece.steps, one, carry)

        return of_head(0, carry) if self.heads == 1 else lax.fori_loop(0, self.heads, of_head, carry)

    def block(self, piece: Piece, step):
        """The rows of the streamed sequence that are visited in a step."""
        return pl.ds(tiles.visit(step, piece.bounds) * self.problem.config.block, self.problem.config.block)

    def hide(self, y, piece: Piece, step, first, at_rest: dict, axis: int):
        """y of a tile, -inf where a query does not see a key; queries run over `axis`.

        `first` is the first row at rest, `at_rest` the arrays of the mask for these rows. The bounds are read anew:
        registers are scarce in the loop.
        """
        if self.schedule is None and tiles.boundary(piece.bounds) == 0:
            return y

        def hidden(y):
            bounds = self._bounds(piece.batch, piece.tile)
            start = tiles.visit(step, bounds) * self.problem.config.block
            streamed = self.vectors(tiles.COLUMNS if axis == 0 else tiles.ROWS, piece, start, y.shape[1], 1)
            key = plgpu.broadcasted_iota(jnp.int32, y.shape, 1 - axis, layout=TILED) + (start if axis == 0 else first)
            arrays = {name: tiles.along(x, y.shape, 0) for name, x in at_rest.items()}
            arrays |= {name: tiles.along(x, y.shape, 1) for name, x in streamed.items()}
            keys = self.problem.keys if axis == 0 else None  # dkv keeps no row beyond the last key
            return tiles.hide(y, tiles.seen(key, arrays, keys))

        return lax.cond(step < tiles.boundary(piece.bounds), hidden, lambda y: y, y)

    def vectors(self, names: Sequence[str], piece: Piece, first, count: int, axis: int = 0) -> dict:
        """The arrays of the mask of those names, `count` entries from `first` on, which run over `axis` of a tile."""
        found = {}
        for name in names:
            if name in self.mask:
                ref = of_batch(self.mask[name], piece.batch).at[pl.ds(first, count)]
                found[name] = load(ref, layout=vector(axis), optimized=False)
        return found


def launch(
    kernel: Callable,
    *,
    name: str,
    arrays: Sequence[jax.Array],
    problem: Prepared,
    settings: Settings,
    outputs: Sequence[jax.ShapeDtypeStruct],
    scratch: Mapping,
) -> list[jax.Array]:
    """The outputs of kernel(work, *array refs, *output refs, **scratch refs), run by two consumers and a producer.

    Without a mask all tiles take equally long and a persistent grid shares them out; with one, the longest start first.
    """
    transposed = problem.config.kernel == "dkv"
    order = Order.of(
        problem.batch * (problem.heads // problem.group if transposed else problem.heads),
        problem.tiles,
        bytes_of_pair=(problem.queries if transposed else problem.keys) * problem.head * 4,
        longest_last=settings.right is not None and not transposed,
    )
    persistent = problem.bounds is None and not transposed  # dkv has no registers to spare for the loop
    blocks = min(len(order), CORES) if persistent else len(order)
    names = sorted(problem.mask)
    given = [*arrays, *(problem.mask[name] for name in names)]
    given += [] if problem.bounds is None else [problem.bounds]

    def body(*refs, **scratch_refs):
        inputs, results = refs[: len(given)], refs[len(given) :]
        mask = dict(zip(names, inputs[len(arrays) :], strict=False))
        schedule = None if problem.bounds is None else inputs[-1]
        heads = problem.group if transposed else 1
        work = Work(problem, settings, order, blocks, heads, mask, schedule)
        kernel(work, *inputs[: len(arrays)], *results, **scratch_refs)

    return plgpu.kernel(
        body,
        out_type=list(outputs),
        scratch_types=dict(scratch),
        grid=(blocks,),
        grid_names=("block",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            lowering_semantics=plgpu.LoweringSemantics.Lane,  # the default changed in jax 0.11
        ),
    )(*given)


def own_rows(piece: Piece, me):
    """The 64 rows of a tile at rest that a consumer warpgroup owns: (first, slice)."""
    first = piece.tile * (WARPGROUPS * ROWS) + me * ROWS
    return first, pl.ds(first, ROWS)
