r"""The norms of `neighbours/norm.py` as kernels: a whole row is held in registers, so each array is read once.

Backward, a program walks over a span of the tokens of one sample and keeps the sums over its tokens of the gradients of
vectors that all tokens share; it writes them as a part of its own, and XLA adds up the parts. So the result does not
depend on the order in which programs run.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.derivatives import Arrays
from pallas_kernels.neighbours.norm import Settings
from pallas_kernels.triton.launch import Launch

PROGRAMS = 528
"""Programs of a backward pass that keep an H100 or H200 busy: four for each of its multiprocessors."""

NAMES = ("x", "branch", "gate", "multiplier", "offset")
"""Operands, in the order of the kernels' parameters."""


@dataclass(frozen=True)
class Axes:
    """Of a vector (1|B,1|T,D): 1 for each axis of full size, 0 for each that is broadcast."""

    batch: int
    token: int


@dataclass(frozen=True)
class Problem:
    """What is compiled into a kernel. Triton names compiled kernels by these fields: a kernel reads no property."""

    rms: bool
    epsilon: float
    one_plus: float
    width: int
    branch: bool
    gate: Axes | None
    multiplier: Axes | None
    offset: Axes | None
    block: int
    """Columns of a tile."""
    rows: int
    """Tokens of a tile."""
    num_warps: int
    moves_x: bool
    """Whether the tangent of x is given, or its cotangent wanted; so for the others."""
    moves_branch: bool
    moves_gate: bool
    moves_multiplier: bool
    moves_offset: bool
    num_stages = 1


@triton.jit
def load_tokens(array, batch, rows, T, P: tl.constexpr):
    """A tile (ROWS, BLOCK) of an array (B,T,D) in float32, zeros outside."""
    columns = tl.arange(0, P.block)[None, :]
    at = (batch.to(tl.int64) * T + rows)[:, None] * P.width + columns
    return tl.load(array + at, mask=(rows < T)[:, None] & (columns < P.width), other=0.0).to(tl.float32)


@triton.jit
def store_tokens(array, tile, batch, rows, T, P: tl.constexpr):
    columns = tl.arange(0, P.block)[None, :]
    at = (batch.to(tl.int64) * T + rows)[:, None] * P.width + columns
    tl.store(array + at, tile.to(array.dtype.element_ty), mask=(rows < T)[:, None] & (columns < P.width))


@triton.jit
def load_vector(array, axes: tl.constexpr, batch, rows, T, P: tl.constexpr):
    """A tile (1, BLOCK) or (ROWS, BLOCK) of a vector (1|B,1|T,D) in float32."""
    if axes.token:
        return load_tokens(array, batch * axes.batch, rows, T, P)
    else:
        columns = tl.arange(0, P.block)[None, :]
        return tl.load(array + batch * axes.batch * P.width + columns, mask=columns < P.width, other=0.0).to(tl.float32)


@triton.jit
def mean(tile, P: tl.constexpr):
    return (tl.sum(tile, 1) / P.width)[:, None]


@triton.jit
def normalised(stream, P: tl.constexpr):
    """(n, 1 / sqrt(variance + epsilon)) of a tile whose columns beyond the width are zero; so are those of n."""
    if not P.rms:
        columns = tl.arange(0, P.block)[None, :]
        stream = tl.where(columns < P.width, stream - mean(stream, P), 0.0)
    inverse = tl.rsqrt(mean(stream * stream, P) + P.epsilon)
    return stream * inverse, inverse


@triton.jit
def along_sphere(moved, n, inverse, P: tl.constexpr):
    """The derivative of `normalised` applied to a tile; it is its own transpose."""
    if not P.rms:
        columns = tl.arange(0, P.block)[None, :]
        moved = tl.where(columns < P.width, moved - mean(moved, P), 0.0)
    return inverse * (moved - n * mean(moved * n, P))


@triton.jit
def norm_forward(x, branch, gate, multiplier, offset, T, stream, out, P: tl.constexpr):
    """One tile of tokens of one sample."""
    count = tl.cdiv(T, P.rows)
    batch, tile = tl.program_id(0) // count, tl.program_id(0) % count
    rows = tile * P.rows + tl.arange(0, P.rows)
    tokens = load_tokens(x, batch, rows, T, P)
    if P.branch:
        added = load_tokens(branch, batch, rows, T, P)
        if P.gate is not None:
            added *= load_vector(gate, P.gate, batch, rows, T, P)
        tokens = (tokens + added).to(stream.dtype.element_ty)
        store_tokens(stream, tokens, batch, rows, T, P)
        tokens = tokens.to(tl.float32)
    n, inverse = normalised(tokens, P)
    if P.multiplier is not None:
        n *= load_vector(multiplier, P.multiplier, batch, rows, T, P) + P.one_plus
    if P.offset is not None:
        n += load_vector(offset, P.offset, batch, rows, T, P)
    store_tokens(out, n, batch, rows, T, P)


@triton.jit
def norm_tangent(
    stream, branch, gate, multiplier, moved_x, moved_branch, moved_gate, moved_multiplier, moved_offset, T,
    moved_stream, moved_out, P: tl.constexpr,
):  # fmt: skip
    """The tangents of one tile; `moved_...` are tangents of operands, where P.moves_... says so."""
    count = tl.cdiv(T, P.rows)
    batch, tile = tl.program_id(0) // count, tl.program_id(0) % count
    rows = tile * P.rows + tl.arange(0, P.rows)
    n, inverse = normalised(load_tokens(stream, batch, rows, T, P), P)
    moved = tl.zeros((P.rows, P.block), tl.float32)
    if P.moves_x:
        moved += load_tokens(moved_x, batch, rows, T, P)
    if P.moves_branch:
        added = load_tokens(moved_branch, batch, rows, T, P)
        if P.gate is not None:
            added *= load_vector(gate, P.gate, batch, rows, T, P)
        moved += added
    if P.moves_gate:
        moved += load_tokens(branch, batch, rows, T, P) * load_vector(moved_gate, P.gate, batch, rows, T, P)
    if P.branch:
        store_tokens(moved_stream, moved, batch, rows, T, P)
    moved = along_sphere(moved, n, inverse, P)
    if P.multiplier is not None:
        moved *= load_vector(multiplier, P.multiplier, batch, rows, T, P) + P.one_plus
    if P.moves_multiplier:
        moved += n * load_vector(moved_multiplier, P.multiplier, batch, rows, T, P)
    if P.moves_offset:
        moved += load_vector(moved_offset, P.offset, batch, rows, T, P)
    store_tokens(moved_out, moved, batch, rows, T, P)


@triton.jit
def store_part(array, part, axes: tl.constexpr, program, P: tl.constexpr):
    """What a program adds to the gradient of a vector, where its tokens share it."""
    if not axes.token:
        columns = tl.arange(0, P.block)
        tl.store(array + program * P.width + columns, part, mask=columns < P.width)


@triton.jit
def norm_backward(
    stream, branch, gate, multiplier, dstream, dout, T, SPAN, dx, dbranch, dgate, dmultiplier, doffset, P: tl.constexpr
):
    """SPAN tokens of one sample, a tile at a time; of the vectors that they share, the part that these tokens add."""
    parts = tl.cdiv(T, SPAN)
    program = tl.program_id(0)
    batch, first = program // parts, program % parts * SPAN
    sum_gate = tl.zeros((P.block,), tl.float32)
    sum_multiplier = tl.zeros((P.block,), tl.float32)
    sum_offset = tl.zeros((P.block,), tl.float32)
    for start in range(first, tl.minimum(first + SPAN, T), P.rows):
        rows = start + tl.arange(0, P.rows)
        n, inverse = normalised(load_tokens(stream, batch, rows, T, P), P)
        moved = load_tokens(dout, batch, rows, T, P)
        if P.moves_multiplier:
            if P.multiplier.token:
                store_tokens(dmultiplier, moved * n, batch, rows, T, P)
            else:
                sum_multiplier += tl.sum(moved * n, 0)
        if P.moves_offset:
            if P.offset.token:
                store_tokens(doffset, moved, batch, rows, T, P)
            else:
                sum_offset += tl.sum(moved, 0)
        if P.multiplier is not None:
            moved *= load_vector(multiplier, P.multiplier, batch, rows, T, P) + P.one_plus
        moved = along_sphere(moved, n, inverse, P)
        if P.branch:
            moved += load_tokens(dstream, batch, rows, T, P)
        store_tokens(dx, moved, batch, rows, T, P)
        if P.moves_gate:
            change = moved * load_tokens(branch, batch, rows, T, P)
            if P.gate.token:
                store_tokens(dgate, change, batch, rows, T, P)
            else:
                sum_gate += tl.sum(change, 0)
        if P.moves_branch:
            if P.gate is not None:
                moved *= load_vector(gate, P.gate, batch, rows, T, P)
            store_tokens(dbranch, moved, batch, rows, T, P)
    if P.moves_gate:
        store_part(dgate, sum_gate, P.gate, program, P)
    if P.moves_multiplier:
        store_part(dmultiplier, sum_multiplier, P.multiplier, program, P)
    if P.moves_offset:
        store_part(doffset, sum_offset, P.offset, program, P)


def forward(operands: Arrays, settings: Settings) -> list[jax.Array]:
    """See `neighbours/norm.py` for the normal form."""
    return launch_forward(operands, settings).run()[0 if "branch" in operands else 1 :]


def tangent(tangents: Arrays, operands: Arrays, outputs, settings: Settings) -> list[jax.Array]:
    return launch_tangent(tangents, operands, outputs, settings).run()[0 if "branch" in operands else 1 :]


def backward(cotangents, operands: Arrays, outputs, wanted: tuple[str, ...], settings: Settings) -> Arrays:
    found = launch_backward(cotangents, operands, outputs, wanted, settings).run()
    found = {name: x for name, x in zip(NAMES, found, strict=True) if name in wanted}
    for name, x in found.items():
        axes = tuple(i for i in (0, 1) if operands[name].shape[i] < x.shape[i])
        found[name] = (x.sum(axes, keepdims=True, dtype=jnp.float32) if axes else x).astype(operands[name].dtype)
    return found


def launch_forward(operands: Arrays, settings: Settings) -> Launch:
    operands, batch = _spread(operands)
    arrays = [operands.get(name, operands["x"]) for name in NAMES]
    return _tiled(norm_forward, arrays, operands["x"], batch, _problem(operands, settings))


def launch_tangent(tangents: Arrays, operands: Arrays, outputs, settings: Settings) -> Launch:
    operands, batch = _spread(operands)
    tangents, _ = _spread(tangents, batch)
    stream = outputs[0] if "branch" in operands else operands["x"]
    arrays = [stream, *(operands.get(name, stream) for name in ("branch", "gate", "multiplier"))]
    arrays += [tangents.get(name, stream) for name in NAMES]
    return _tiled(norm_tangent, arrays, operands["x"], batch, _problem(operands, settings, tuple(tangents)))


def launch_backward(cotangents, operands: Arrays, outputs, wanted: tuple[str, ...], settings: Settings) -> Launch:
    operands, batch = _spread(operands)
    problem, tokens = _problem(operands, settings, wanted), operands["x"].shape[1]
    summed = [name for name in wanted if name not in ("x", "branch") and not getattr(problem, name).token]
    span = problem.rows
    if summed:
        span *= -(-tokens // (span * -(-PROGRAMS // batch)))
    parts = -(-tokens // span)

    def gradient(name):
        x = operands.get(name, operands["x"])
        if name in summed:
            return jax.ShapeDtypeStruct((batch, parts, problem.width), jnp.float32)
        return _only_if(name == "x" or name in wanted, jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype))

    stream = outputs[0] if problem.branch else operands["x"]
    arrays = [stream, *(operands.get(name, stream) for name in ("branch", "gate", "multiplier"))]
    inputs = [*arrays, cotangents[0], cotangents[-1], tokens, span]
    outputs = [gradient(name) for name in NAMES]
    return Launch(norm_backward, inputs, outputs, (batch * parts,), problem, dict(P=problem))


def _tiled(kernel, arrays, x, batch: int, problem: Problem) -> Launch:
    """A kernel that gives the stream, where there is a branch, and out, one tile of tokens in each program."""
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    grid = (batch * -(-x.shape[1] // problem.rows),)
    return Launch(kernel, [*arrays, x.shape[1]], [_only_if(problem.branch, out), out], grid, problem, dict(P=problem))


def _spread(arrays: Arrays, batch: int = 1) -> tuple[Arrays, int]:
    """The arrays, tokens with a batch axis of full size; and that size."""
    batch = max([batch, *(x.shape[0] for x in arrays.values())])
    tokens = {name: arrays[name] for name in ("x", "branch") if name in arrays}
    return arrays | {name: jnp.broadcast_to(x, (batch, *x.shape[1:])) for name, x in tokens.items()}, batch


def _problem(operands: Arrays, settings: Settings, moving: tuple[str, ...] = ()) -> Problem:
    width = operands["x"].shape[-1]
    block = max(16, triton.next_power_of_2(width))

    def axes(name):
        return Axes(*(int(size > 1) for size in operands[name].shape[:2])) if name in operands else None

    return Problem(
        rms=settings.kind == "rms",
        epsilon=settings.epsilon,
        one_plus=float(settings.one_plus),
        width=width,
        branch="branch" in operands,
        gate=axes("gate"),
        multiplier=axes("multiplier"),
        offset=axes("offset"),
        block=block,
        rows=max(1, 2048 // block),
        num_warps=max(4, block // 512),
        **{f"moves_{name}": name in moving for name in NAMES},
    )


def _only_if(there: bool, out: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """An output, or one element that is never written where there is none."""
    return out if there else jax.ShapeDtypeStruct((1,), out.dtype)
