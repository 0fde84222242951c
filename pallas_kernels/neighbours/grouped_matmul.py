r"""Matrix product of groups of rows, each with a matrix of its own: the experts of a mixture, without dropping tokens.

    out[i] = lhs[i] @ rhs[g]        for every row i of group g; rows are sorted by group

as in MegaBlocks (Gale et al. 2022, arXiv:2211.15841): groups are cut into tiles of rows, and every tile is one dense
product. Its transposes are the product with rhs^T, and one product per group that contracts the rows,

    drhs[g] = sum over the rows i of group g of lhs[i]^T dout[i],

and those two are each other's transposes. So derivatives of all orders are made of the same two operations.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.derivatives import Arrays, Fused, Rules, imported_late
from pallas_kernels.neighbours.implementation import Implementation, array_obstacle, choose


@dataclass(frozen=True)
class Settings:
    """What is static in a grouped matmul."""

    transposed: bool = False
    """Whether rows are multiplied by rhs[g]^T."""


def grouped_matmul(
    lhs: Float[Array, "M K"],
    rhs: Float[Array, "E K N"],
    group_sizes: Int[Array, " E"],
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "M N"]:
    """Rows of `lhs`, sorted by group, times the matrix of their group; sums in float32, result in the dtype of lhs.

    Rows after the first sum(group_sizes) give 0. `group_sizes` must not add up to more than M.
    Raises ValueError where shapes or dtypes disagree, NotImplementedError where `implementation` cannot do it.
    """
    groups, inner, _ = rhs.shape
    if lhs.ndim != 2 or lhs.shape[1] != inner:
        raise ValueError(f"lhs has shape {lhs.shape}, accepted is (rows, {inner})")
    if group_sizes.shape != (groups,):
        raise ValueError(f"group_sizes has shape {group_sizes.shape}, accepted is ({groups},)")
    if lhs.dtype != rhs.dtype:
        raise ValueError(f"lhs is {lhs.dtype} and rhs {rhs.dtype}, accepted is one dtype for both")
    implementation = choose(implementation, array_obstacle(lhs, rhs))
    operands = {"lhs": lhs[None], "rhs": rhs[None], "sizes": group_sizes.astype(jnp.int32)[None]}
    return _PRODUCT(operands, Settings(), implementation)[0][0]


# The normal forms.  Product: lhs (1|B,M,K), rhs (1|B,E,K,N) (transposed: (1|B,E,N,K)), sizes (1|B,E) -> (B,M,N).
# Contraction: lhs (1|B,M,K), rhs (1|B,M,N), sizes (1|B,E) -> (B,E,K,N).


def _product_shape(operands: Arrays, settings: Settings) -> list[jax.ShapeDtypeStruct]:
    lhs, rhs = operands["lhs"], operands["rhs"]
    batch = max(x.shape[0] for x in operands.values())
    return [jax.ShapeDtypeStruct((batch, lhs.shape[1], rhs.shape[2 if settings.transposed else 3]), lhs.dtype)]


def _contraction_shape(operands: Arrays, settings: Settings) -> list[jax.ShapeDtypeStruct]:
    lhs, rhs, sizes = (operands[name] for name in ("lhs", "rhs", "sizes"))
    batch = max(x.shape[0] for x in operands.values())
    return [jax.ShapeDtypeStruct((batch, sizes.shape[1], lhs.shape[2], rhs.shape[2]), lhs.dtype)]


def _bilinear(forward, implementation: str, operation, transposes) -> Rules:
    """The rules of a function that is linear in lhs and in rhs, whose tangents and transposes are Fused themselves."""

    def tangent(tangents, operands, outputs, settings):
        parts = [operation()(operands | {name: x}, settings, implementation)[0] for name, x in tangents.items()]
        return (sum(parts[1:], parts[0]),)

    def backward(cotangents, operands, outputs, wanted, settings):
        found = {}
        for name in wanted:
            x = transposes(name, cotangents[0], operands, settings, implementation)
            found[name] = x.sum(0, keepdims=True) if operands[name].shape[0] < x.shape[0] else x
        return found

    return Rules(forward, tangent, backward)


def _product_transposes(name, cotangent, operands, settings, implementation) -> jax.Array:
    sizes = operands["sizes"]
    if name == "lhs":
        given = {"lhs": cotangent, "rhs": operands["rhs"], "sizes": sizes}
        return _PRODUCT(given, Settings(not settings.transposed), implementation)[0]
    pair = (cotangent, operands["lhs"]) if settings.transposed else (operands["lhs"], cotangent)
    return _CONTRACTION({"lhs": pair[0], "rhs": pair[1], "sizes": sizes}, None, implementation)[0]


def _contraction_transposes(name, cotangent, operands, settings, implementation) -> jax.Array:
    other = operands["rhs" if name == "lhs" else "lhs"]
    given = {"lhs": other, "rhs": cotangent, "sizes": operands["sizes"]}
    return _PRODUCT(given, Settings(transposed=name == "lhs"), implementation)[0]


# Plain JAX. On a CPU the groups and their tiles are loops that run as often as the sizes ask; elsewhere XLA's own
# ragged products, since there a loop with a trip count from the device would wait for the host at every turn.


def _product_xla(operands: Arrays, settings: Settings) -> tuple[jax.Array]:
    def default(lhs, rhs, sizes):
        return _ragged_product(lhs, rhs.mT if settings.transposed else rhs, sizes)

    def cpu(lhs, rhs, sizes):
        return _looped_product(lhs, rhs, sizes, settings.transposed)

    return (_over_batch(lambda *x: jax.lax.platform_dependent(*x, cpu=cpu, default=default), operands),)


def _contraction_xla(operands: Arrays, settings: None) -> tuple[jax.Array]:
    def run(*x):
        return jax.lax.platform_dependent(*x, cpu=_looped_contraction, default=_ragged_contraction)

    return (_over_batch(run, operands),)


def _over_batch(run, operands: Arrays) -> jax.Array:
    batch = max(x.shape[0] for x in operands.values())
    values = [operands[name] for name in ("lhs", "rhs", "sizes")]
    if batch == 1:
        return run(*(x[0] for x in values))[None]
    return jax.lax.map(lambda i: run(*(x[i if x.shape[0] > 1 else 0] for x in values)), jnp.arange(batch))


def _looped_product(lhs, rhs, sizes, transposed: bool) -> jax.Array:
    rows, ends = _tile_rows(lhs, sizes), jnp.minimum(jnp.cumsum(sizes), lhs.shape[0])
    columns = rhs.shape[1 if transposed else 2]

    def group(g, out):
        matrix = rhs[g].T if transposed else rhs[g]
        first, end = ends[g] - sizes[g], ends[g]

        def tile(i, out):
            start, mine = _tile(lhs.shape[0], rows, first + i * rows, end)
            x = jax.lax.dynamic_slice_in_dim(lhs, start, rows)
            found = jnp.dot(x, matrix, preferred_element_type=_accumulator(lhs)).astype(out.dtype)
            kept = jax.lax.dynamic_slice_in_dim(out, start, rows)
            return jax.lax.dynamic_update_slice_in_dim(out, jnp.where(mine, found, kept), start, 0)

        return jax.lax.fori_loop(0, -(-(end - first) // rows), tile, out)

    return jax.lax.fori_loop(0, len(sizes), group, jnp.zeros((lhs.shape[0], columns), lhs.dtype))


def _looped_contraction(lhs, rhs, sizes) -> jax.Array:
    rows, ends = _tile_rows(lhs, sizes), jnp.minimum(jnp.cumsum(sizes), lhs.shape[0])

    def group(g):
        first, end = ends[g] - sizes[g], ends[g]

        def tile(i, total):
            start, mine = _tile(lhs.shape[0], rows, first + i * rows, end)
            x = jnp.where(mine, jax.lax.dynamic_slice_in_dim(lhs, start, rows), 0)
            y = jnp.where(mine, jax.lax.dynamic_slice_in_dim(rhs, start, rows), 0)
            return total + jnp.dot(x.T, y, preferred_element_type=total.dtype)

        zeros = jnp.zeros((lhs.shape[1], rhs.shape[1]), _accumulator(lhs))
        return jax.lax.fori_loop(0, -(-(end - first) // rows), tile, zeros).astype(lhs.dtype)

    return jax.lax.map(group, jnp.arange(len(sizes)))


def _tile_rows(lhs, sizes) -> int:
    """Rows of a tile: a quarter to a half of an even share, since on average half a tile per group is wasted."""
    share = lhs.shape[0] // (4 * len(sizes))
    return min(max(1 << share.bit_length(), 16), 512, lhs.shape[0])


def _tile(count: int, rows: int, first, end):
    """(start (), which of the rows from there on belong to the tile (rows, 1)); a tile never leaves the array."""
    start = jnp.minimum(first, count - rows)
    row = start + jnp.arange(rows)[:, None]
    return start, (row >= first) & (row < end)


def _ragged_product(lhs, rhs, sizes) -> jax.Array:
    out = jax.lax.ragged_dot(lhs, rhs, sizes, preferred_element_type=_accumulator(lhs))
    return jnp.where(jnp.arange(lhs.shape[0])[:, None] < sizes.sum(), out, 0).astype(lhs.dtype)


def _ragged_contraction(lhs, rhs, sizes) -> jax.Array:
    axes = jax.lax.RaggedDotDimensionNumbers(
        (((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    found = jax.lax.ragged_dot_general(lhs, rhs, sizes, axes, preferred_element_type=_accumulator(lhs))
    return found.astype(lhs.dtype)


def _accumulator(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


_KERNELS = "pallas_kernels.neighbours.grouped_matmul_triton"
_TRITON = {name: imported_late(_KERNELS, name) for name in ("product", "contraction")}


def _fused(name: str, plain, transposes, shapes) -> Fused:
    def rules(forward, implementation):
        return _bilinear(forward, implementation, lambda: fused, transposes)

    xla = rules(plain, "xla")
    fused = Fused(f"grouped_{name}", {"xla": xla, "triton": rules(_TRITON[name], "triton")}, xla, shapes)
    return fused


_PRODUCT = _fused("product", _product_xla, _product_transposes, _product_shape)
_CONTRACTION = _fused("contraction", _contraction_xla, _contraction_transposes, _contraction_shape)
