r"""The grouped matmul as kernels: rows are cut into tiles that belong to one group each, and every tile is a program.

A group of n rows takes ceil(n / rows) tiles, so that M rows in E groups take at most M // rows + E of them, whatever
the sizes: as many programs are launched, and those beyond the last tile do nothing. Rows after the last group make a
group of their own, of zeros. The product with rhs^T is the same kernel with the axes of rhs swapped. The contraction
has one program per group and tile of its matrix, which walks over the rows of the group: no atomics, one order of sums.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.derivatives import Arrays
from pallas_kernels.neighbours.grouped_matmul import Settings
from pallas_kernels.triton.launch import Launch


@dataclass(frozen=True)
class Tiles:
    """How a kernel is cut: a product into tiles (rows, columns), a contraction into (inner, columns)."""

    rows: int
    inner: int
    columns: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Problem:
    """What is compiled into a kernel."""

    rows: int
    groups: int
    inner: int
    columns: int
    lhs_batched: int
    """1 where lhs has a batch axis of full size, else 0."""
    rhs_batched: int
    sizes_batched: int
    inner_step: int
    """From one element of a matrix of rhs to the next along the inner axis."""
    column_step: int
    tiles: Tiles


@triton.jit
def grouped_product(lhs, rhs, table, COUNT, out, P: tl.constexpr):
    """One tile of rows of one sample, one tile of columns; a row of the table is (group, first row, last row + 1)."""
    N: tl.constexpr = P.columns
    K: tl.constexpr = P.inner
    across = tl.cdiv(N, P.tiles.columns)
    # Programs that run at the same time take a square of tiles, so that they share rows and matrices in the cache.
    program, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    stripe = program // (8 * across)
    deep = tl.minimum(COUNT - 8 * stripe, 8)
    tile = 8 * stripe + program % (8 * across) % deep
    column = (program % (8 * across)) // deep
    row = table + (batch * P.sizes_batched * COUNT + tile) * 3
    group, first, end = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    if first < end:
        i = first + tl.arange(0, P.tiles.rows)
        j = column * P.tiles.columns + tl.arange(0, P.tiles.columns)
        acc = tl.zeros((P.tiles.rows, P.tiles.columns), tl.float32)
        if group < P.groups:
            # Rows of other groups are multiplied along, but not stored.
            x = lhs + (batch * P.lhs_batched * P.rows + tl.minimum(i, P.rows - 1))[:, None] * K
            matrix = rhs + (batch * P.rhs_batched * P.groups + group) * K * N
            for start in range(0, K, P.tiles.inner):
                k = start + tl.arange(0, P.tiles.inner)
                at = matrix + k[:, None] * P.inner_step + j[None, :] * P.column_step
                a = tl.load(x + k[None, :], mask=(k < K)[None, :], other=0.0)
                b = tl.load(at, mask=(k < K)[:, None] & (j < N)[None, :], other=0.0)
                acc = tl.dot(a, b, acc, input_precision="ieee")
        to = out + (batch * P.rows + i)[:, None] * N + j[None, :]
        tl.store(to, acc.to(out.dtype.element_ty), mask=(i < end)[:, None] & (j < N)[None, :])


@triton.jit
def grouped_contraction(lhs, rhs, bounds, COUNT, out, P: tl.constexpr):
    """One tile of the matrix of one group of one sample; a row of the bounds is (first row, last row + 1)."""
    N: tl.constexpr = P.columns
    K: tl.constexpr = P.inner
    across = tl.cdiv(N, P.tiles.columns)
    k = tl.program_id(0) // across * P.tiles.inner + tl.arange(0, P.tiles.inner)
    j = tl.program_id(0) % across * P.tiles.columns + tl.arange(0, P.tiles.columns)
    group, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = bounds + (batch * P.sizes_batched * COUNT + group) * 2
    first, end = tl.load(row), tl.load(row + 1)
    x = lhs + batch * P.lhs_batched * P.rows * K
    y = rhs + batch * P.rhs_batched * P.rows * N
    acc = tl.zeros((P.tiles.inner, P.tiles.columns), tl.float32)
    for start in range(first, end, P.tiles.rows):
        i = (start + tl.arange(0, P.tiles.rows)).to(tl.int64)
        a = tl.load(x + i[:, None] * K + k[None, :], mask=(i < end)[:, None] & (k < K)[None, :], other=0.0)
        b = tl.load(y + i[:, None] * N + j[None, :], mask=(i < end)[:, None] & (j < N)[None, :], other=0.0)
        acc = tl.dot(tl.trans(a), b, acc, input_precision="ieee")
    to = out + ((batch * P.groups + group) * K + k)[:, None] * N + j[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=(k < K)[:, None] & (j < N)[None, :])


def product(operands: Arrays, settings: Settings) -> list[jax.Array]:
    """See `neighbours/grouped_matmul.py` for the normal forms."""
    return launch_product(operands, settings).run()


def contraction(operands: Arrays, settings: None) -> list[jax.Array]:
    return launch_contraction(operands).run()


def launch_product(operands: Arrays, settings: Settings) -> Launch:
    lhs, rhs, sizes = (operands[name] for name in ("lhs", "rhs", "sizes"))
    batch = max(x.shape[0] for x in operands.values())
    rows, inner = lhs.shape[1:]
    columns = rhs.shape[2 if settings.transposed else 3]
    share = triton.next_power_of_2(max(1, rows // sizes.shape[1]))
    tiles = Tiles(min(max(16, share), 128), 64, 128, num_warps=8 if share >= 128 else 4, num_stages=3)
    if lhs.dtype.itemsize == 4:
        tiles = Tiles(min(max(16, share), 64), 32, 64, num_warps=4, num_stages=2)
    problem = _problem(operands, inner, columns, tiles, settings.transposed)
    table = jax.vmap(lambda sizes: tile_table(sizes, rows, tiles.rows))(sizes)
    count = table.shape[1]
    grid = (count * -(-columns // tiles.columns), batch)
    out = jax.ShapeDtypeStruct((batch, rows, columns), lhs.dtype)
    return Launch(grouped_product, [lhs, rhs, table, count], [out], grid, tiles, dict(P=problem))


def launch_contraction(operands: Arrays) -> Launch:
    lhs, rhs, sizes = (operands[name] for name in ("lhs", "rhs", "sizes"))
    batch, groups = max(x.shape[0] for x in operands.values()), sizes.shape[1]
    inner, columns = lhs.shape[2], rhs.shape[2]
    tiles = Tiles(64, 128, 128, num_warps=8, num_stages=3)
    if lhs.dtype.itemsize == 4:
        tiles = Tiles(32, 64, 64, num_warps=4, num_stages=2)
    problem = _problem(operands, inner, columns, tiles, False)
    ends = jnp.minimum(jnp.cumsum(sizes, axis=1), lhs.shape[1])
    bounds = jnp.stack([ends - sizes, ends], axis=-1)
    grid = (-(-inner // tiles.inner) * -(-columns // tiles.columns), groups, batch)
    out = jax.ShapeDtypeStruct((batch, groups, inner, columns), lhs.dtype)
    return Launch(grouped_contraction, [lhs, rhs, bounds, groups], [out], grid, tiles, dict(P=problem))


def tile_table(sizes: jax.Array, rows: int, tile: int) -> jax.Array:
    """(group, first row, last row + 1) of every tile, (tiles, 3) int32; the group of rows after the last is E.

    Tiles beyond those that the sizes ask for are empty.
    """
    groups = len(sizes)
    sizes = jnp.append(sizes, rows - sizes.sum())
    ends = jnp.cumsum(sizes)
    last = jnp.cumsum(-(-sizes // tile))
    index = jnp.arange(rows // tile + groups + 1)
    group = jnp.searchsorted(last, index, side="right")
    there, group = group <= groups, jnp.minimum(group, groups)
    before = jnp.where(group > 0, last[group - 1], 0)
    first = ends[group] - sizes[group] + (index - before) * tile
    end = jnp.where(there, jnp.minimum(first + tile, ends[group]), first)
    return jnp.stack([group, first, end], axis=1).astype(jnp.int32)


def _problem(operands: Arrays, inner: int, columns: int, tiles: Tiles, transposed: bool) -> Problem:
    return Problem(
        rows=operands["lhs"].shape[1],
        groups=operands["sizes"].shape[1],
        inner=inner,
        columns=columns,
        **{f"{name}_batched": int(operands[name].shape[0] > 1) for name in ("lhs", "rhs", "sizes")},
        inner_step=1 if transposed else columns,
        column_step=inner if transposed else 1,
        tiles=tiles,
    )
