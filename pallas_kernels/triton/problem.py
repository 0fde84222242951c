"""An attention problem as the Triton kernels take it: what is compiled into them, and the arrays that they all load.

A kernel is compiled for a `Problem`: which rules, bias and sinks there are, head counts and widths. Lengths stay
integers of a launch, so that other lengths reuse the kernel. An array that is absent is stood in for by the query,
never read.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.mask import Mask
from pallas_kernels.dot_product_attention.problem import Settings, mask_of
from pallas_kernels.dot_product_attention.schedule import Tiling, plan

LOG2E = 1.4426950408889634
WIDEST = 256
"""Widest head: one tile of query and one of key must fit in shared memory."""
_DTYPES = ("float32", "bfloat16", "float16")
_ARRAYS = (
    "query", "key", "value", "bias", "sinks", "dense", "key_start", "key_end", "query_segments", "key_segments",
    "query_positions", "key_positions", "ancestors", "tree_start", "span", "schedule",
)  # fmt: skip
"""What every kernel is given first, in this order, and the order of the fields of `Batched`."""


@dataclass(frozen=True)
class Batched:
    """1 for each array that has a batch axis of its own, 0 where the whole batch shares it.

    (`value` is a name that `tl.constexpr` keeps for itself.)
    """

    query: int = 0
    key: int = 0
    values: int = 0
    bias: int = 0
    sinks: int = 0
    dense: int = 0
    key_start: int = 0
    key_end: int = 0
    query_segments: int = 0
    key_segments: int = 0
    query_positions: int = 0
    key_positions: int = 0
    ancestors: int = 0
    tree_start: int = 0
    span: int = 0
    schedule: int = 0


@dataclass(frozen=True)
class Pairs:
    """Of an array (#B,#N,#T,#S): 1 for each axis of full size, 0 for each that is broadcast."""

    batch: int
    head: int
    query: int
    key: int


@dataclass(frozen=True)
class Problem:
    """What is static in a problem; hashable, so that a kernel is compiled once for each."""

    scale: float
    soft_cap: float | None
    left: int | None
    right: int | None
    heads: int
    group: int
    """Query heads per key head."""
    width: int
    value_width: int
    bias: Pairs | None
    dense: Pairs | None
    sinks: bool
    key_start: bool
    key_end: bool
    segments: bool
    positions: bool
    words: int
    """Words of `ancestors` per query; 0: no tree."""
    scheduled: bool
    """Whether the intervals of tiles are loaded; if not they follow from the band."""
    full: bool
    """Whether a tile may be seen whole."""
    partial: bool
    """Whether the mask must be tested in some tile."""
    batched: Batched

    @property
    def exponent(self) -> float:
        """Of logits in units of log 2: what query . key is multiplied by."""
        return self.scale * LOG2E

    @property
    def kv_heads(self) -> int:
        return self.heads // self.group

    @property
    def query_stride(self) -> int:
        """From a query to the next one of its head; the others likewise."""
        return self.heads * self.width

    @property
    def key_stride(self) -> int:
        return self.kv_heads * self.width

    @property
    def value_stride(self) -> int:
        return self.kv_heads * self.value_width

    @property
    def out_stride(self) -> int:
        return self.heads * self.value_width

    @property
    def block_width(self) -> int:
        return padded(self.width)

    @property
    def block_value(self) -> int:
        return padded(self.value_width)


def padded(width: int) -> int:
    """The tile that holds a head: a power of two, at least 16."""
    return max(16, 1 << (width - 1).bit_length())


def refuse(operands: Arrays) -> None:
    """Raises NotImplementedError for what these kernels cannot do, and says what can."""
    query, key, value = operands["query"], operands["key"], operands["value"]
    kinds = {x.dtype.name for x in (query, key, value)}
    if len(kinds) > 1 or not kinds <= set(_DTYPES):
        found = ", ".join(sorted(kinds))
        raise NotImplementedError(f"triton: query, key and value in {found}; one of {', '.join(_DTYPES)}, or xla")
    if max(query.shape[-1], value.shape[-1]) > WIDEST:
        raise NotImplementedError(f"triton: heads wider than {WIDEST}; xla has no limit")
    if 0 in query.shape + key.shape + value.shape:
        raise NotImplementedError("triton: an empty array; xla takes it")


def describe(operands: Arrays, settings: Settings, tiling: Tiling) -> tuple[Problem, list]:
    """(what is static, the arrays that every kernel starts with); `tiling` is how the kernel walks over the logits."""
    query, key, value = operands["query"], operands["key"], operands["value"]
    mask, bias, dense = mask_of(operands, settings), operands.get("bias"), operands.get("dense")
    scheduled = needs_schedule(mask)
    extra = {
        "span": _span(mask, key.shape[1]),
        "schedule": plan(operands, settings, tiling) if scheduled else None,
    }
    held = operands | {name: x for name, x in extra.items() if x is not None}
    problem = Problem(
        scale=float(settings.scale),
        soft_cap=None if settings.soft_cap is None else float(settings.soft_cap),
        left=settings.left,
        right=settings.right,
        heads=query.shape[2],
        group=query.shape[2] // key.shape[2],
        width=query.shape[3],
        value_width=value.shape[3],
        bias=None if bias is None else Pairs(*(int(size > 1) for size in bias.shape)),
        dense=None if dense is None else Pairs(*(int(size > 1) for size in dense.shape)),
        sinks="sinks" in operands,
        key_start=mask.key_start is not None,
        key_end=mask.key_end is not None,
        segments=mask.query_segments is not None,
        positions=mask.query_positions is not None,
        words=0 if mask.ancestors is None else mask.ancestors.shape[-1],
        scheduled=scheduled,
        full=dense is None,
        partial=bool(mask.rules) or _ragged(tiling, query.shape[1], key.shape[1]),
        batched=Batched(*(int(name in held and held[name].shape[0] > 1) for name in _ARRAYS)),
    )
    return problem, [held.get(name, query) for name in _ARRAYS]


def _ragged(tiling: Tiling, queries: int, keys: int) -> bool:
    """Whether the tiles it walks over reach beyond the end."""
    length, block = (keys, tiling.block_k) if tiling.at_rest == "queries" else (queries, tiling.block_q)
    return length % block != 0


def needs_schedule(mask: Mask) -> bool:
    """Whether the tiles that are visited depend on arrays; a band of indices, or a dense mask, needs none."""
    return bool(mask.rules & {"ranges", "segments", "positions", "tree"})


def batch_of(operands: Arrays) -> int:
    return max(x.shape[0] for x in operands.values())


def log2_lse(lse: jax.Array) -> jax.Array:
    """(B,T,N) to (B,N,T) in units of log 2; +inf for rows that see nothing, so that exp2(logits - lse) is 0."""
    return jnp.swapaxes(jnp.where(jnp.isneginf(lse), jnp.inf, lse * LOG2E), 1, 2)


def _span(mask: Mask, keys: int) -> jax.Array | None:
    """(#B, 2): the keys [first, last) outside of which no query sees any; their memory may hold anything."""
    if mask.key_start is None and mask.key_end is None:
        return None
    first = jnp.zeros((1,), jnp.int32) if mask.key_start is None else jnp.min(mask.key_start, axis=1)
    last = jnp.full((1,), keys, jnp.int32) if mask.key_end is None else jnp.max(mask.key_end, axis=1)
    first, last = jnp.broadcast_arrays(first, last)
    return jnp.stack([first, last], axis=1).astype(jnp.int32)
