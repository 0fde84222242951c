"""Tile sizes of the Triton kernels, by kernel and head width: a table, chosen so that no register spills on Hopper.

The table is for 16-bit arrays; in float32 (which the tensor cores do not multiply exactly) tiles are smaller.
`resources.py` reports what the compiler makes of every entry. Tiles measured on a GPU take its place there (tuning.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pallas_kernels.derivatives import Arrays
from pallas_kernels.triton.problem import padded
from pallas_kernels.tuning import measured

SHARED_MEMORY = 232_448
"""Bytes of shared memory that a program can have on an H100 or H200."""


@dataclass(frozen=True)
class Config:
    """How a kernel is cut into programs."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


TABLE = {
    ("forward", 64, None): Config(128, 64, 4, 3),
    ("forward", 64, "rows"): Config(128, 64, 8, 3),
    ("forward", 64, "pairs"): Config(128, 64, 8, 3),
    ("forward", 128, None): Config(128, 128, 8, 2),
    ("forward", 128, "pairs"): Config(128, 32, 8, 2),
    ("forward", 256, None): Config(64, 32, 8, 2),
    ("dq", 64, None): Config(128, 64, 8, 2),
    ("dq", 128, None): Config(128, 64, 8, 2),
    ("dq", 128, "pairs"): Config(128, 32, 8, 2),
    ("dq", 256, None): Config(32, 32, 8, 2),
    ("dkv", 64, None): Config(64, 128, 8, 2),
    ("dkv", 64, "pairs"): Config(64, 64, 8, 2),
    ("dkv", 128, None): Config(64, 64, 8, 2),
    ("dkv", 128, "rows"): Config(32, 64, 8, 2),
    ("dkv", 128, "pairs"): Config(32, 64, 8, 2),
    ("dkv", 256, None): Config(32, 32, 8, 1),
    ("dbias", 64, None): Config(64, 64, 4, 2),
    ("dbias", 128, None): Config(64, 64, 8, 2),
    ("dbias", 256, None): Config(64, 32, 8, 2),
    ("tangent", 64, None): Config(128, 64, 8, 2),
    ("tangent", 128, None): Config(128, 64, 8, 2),
    ("tangent", 128, "pairs"): Config(128, 16, 8, 2),
    ("tangent", 256, None): Config(16, 32, 8, 1),
    ("decode", 64, None): Config(64, 64, 4, 3),
    ("decode", 128, None): Config(64, 64, 4, 3),
    ("decode", 256, None): Config(64, 32, 8, 2),
}
"""By kernel, head width, and what else the kernel must hold in registers; None: the entry of all that is not listed."""
LOADS = {
    "pairs": ("bias", "dense", "ancestors"),
    "rows": ("key_start", "key_end", "query_positions"),
}
"""Operands that take registers: a number for each pair of a tile, or for each row of it."""
FLOAT32 = {
    ("forward", 64): Config(32, 32, 4, 1),
    ("forward", 128): Config(32, 32, 8, 1),
    ("dq", 64): Config(32, 32, 8, 1),
}
"""The same in float32; where nothing is listed, SMALLEST."""
SMALLEST = Config(16, 16, 4, 1)


def choose(
    kind: str, operands: Arrays, configs: Mapping[str, Config] | None = None, *, rows: int | None = None
) -> Config:
    """The tiles of a kernel for these operands, no longer than the sequences need.

    Taken from `configs` if given there, else what was measured on this kind of GPU, else from the table. `rows` is the
    number of rows of queries where it is not that of the queries: packed, in decoding.
    """
    query, key, value = operands["query"], operands["key"], operands["value"]
    width = max(64, padded(query.shape[-1]), padded(value.shape[-1]))
    if configs and kind in configs:
        config = configs[kind]
    elif query.dtype.itemsize == 2:
        load = next((name for name, held in LOADS.items() if any(x in operands for x in held)), None)
        entry = (kind, width, load) if (kind, width, load) in TABLE else (kind, width, None)
        found = measured(name_of(*entry))
        config = TABLE[entry] if found is None else Config(**found)
    else:
        config = FLOAT32.get((kind, width), SMALLEST)
    rows = query.shape[1] if rows is None else rows
    return replace(config, block_q=min(config.block_q, padded(rows)), block_k=min(config.block_k, padded(key.shape[1])))


def name_of(kind: str, width: int, load: str | None) -> str:
    """Of an entry, in a table of measured tiles."""
    return "/".join(["triton", kind, str(width), *([load] if load else [])])


def neighbours(kind: str, width: int, config: Config) -> list[Config]:
    """What differs from `config` in one number, one step, and may fit on a Hopper GPU."""
    steps = [
        *(replace(config, block_q=size) for size in (config.block_q // 2, config.block_q * 2)),
        *(replace(config, block_k=size) for size in (config.block_k // 2, config.block_k * 2)),
        replace(config, num_warps=12 - config.num_warps),  # 4 or 8
        *(replace(config, num_stages=count) for count in (config.num_stages - 1, config.num_stages + 1)),
    ]
    return [
        c
        for c in steps
        if 16 <= min(c.block_q, c.block_k) <= max(c.block_q, c.block_k) <= 256
        and 1 <= c.num_stages <= 5
        and estimate_shared_memory(kind, c, width, width) <= SHARED_MEMORY
    ]


def estimate_shared_memory(kind: str, config: Config, width: int, value_width: int, itemsize: int = 2) -> int:
    """Bytes of shared memory: the tiles that stay, and `num_stages` copies of those that stream."""
    per_query, per_key = {
        "forward": (padded(width), padded(width) + padded(value_width)),
        "decode": (padded(width), padded(width) + padded(value_width)),
        "dq": (padded(width) + padded(value_width), padded(width) + padded(value_width)),
        "dkv": (padded(width) + padded(value_width), padded(width) + padded(value_width)),
        "dbias": (padded(width) + padded(value_width), padded(width) + padded(value_width)),
        "tangent": (2 * padded(width), 2 * (padded(width) + padded(value_width))),
    }[kind]
    stays, streams = config.block_q * per_query, config.block_k * per_key
    if kind == "dkv":
        stays, streams = streams, stays
    if kind == "dbias":  # each visit is to other heads
        stays, streams = 0, stays + streams
    return itemsize * (stays + max(1, config.num_stages) * streams)
