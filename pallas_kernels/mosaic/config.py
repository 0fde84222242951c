"""Sizes of the tiles of the Hopper kernels, by width of the heads, and the order in which tiles are worked on.

Every kernel keeps one tile of 128 rows at rest, 64 for each of two consumer warpgroups, and streams blocks of the other
sequence through a ring of `stages` buffers that a third warpgroup fills with bulk copies (TMA). At rest are

    forward   queries (their buffer also stages the output)      streamed: keys, values
    dq        queries, dout                                      streamed: keys, values
    dkv       keys, values                                       streamed: queries, dout, lse, delta
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax import lax

from pallas_kernels.dot_product_attention.schedule import Tiling
from pallas_kernels.tuning import measured

WARPGROUPS = 2
"""Consumer warpgroups; one more warpgroup moves memory."""
ROWS = 64
"""Rows of a tile that one warpgroup owns: the height of a wgmma."""
TILE = WARPGROUPS * ROWS
SHARED_MEMORY = 232_448
"""Bytes of shared memory that a block may have on a Hopper GPU."""
SMALL = 3072
"""Bytes of it for barriers and alignment."""
CORES = 132
"""Streaming multiprocessors of an H100 or H200 SXM: the size of a persistent grid."""
L2_SHARE = 24 * 2**20
"""Bytes of keys and values that should stay in the L2 cache (50 MB) while tiles go over them."""


KERNELS = ("forward", "dq", "dkv")


@dataclass(frozen=True)
class Config:
    """Tile sizes of one kernel. One of `block_q`, `block_k` is the 128 rows at rest."""

    kernel: str
    """forward, dq or dkv."""
    block_q: int = TILE
    """Queries in a tile (at rest in forward and dq, streamed in dkv)."""
    block_k: int = TILE
    """Keys in a tile (streamed in forward and dq, at rest in dkv)."""
    stages: int = 2
    """Buffers in the ring."""
    registers: tuple[int, int] = (240, 24)
    """Registers a thread of the consumers, and of the producer, may use: 128 (2 * 240 + 24) <= 65,536."""

    def __post_init__(self):
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel is {self.kernel!r}: accepted are {', '.join(KERNELS)}")
        if self.rest != TILE or self.block % 64 or not 64 <= self.block <= 256 or self.stages < 1:
            raise ValueError(f"{self}: {TILE} rows at rest, streamed blocks of 64 to 256 in steps of 64, stages >= 1")

    @property
    def tiling(self) -> Tiling:
        """How it walks over the logits."""
        return Tiling("keys" if self.kernel == "dkv" else "queries", self.block_q, self.block_k)

    @property
    def rest(self) -> int:
        """Rows at rest."""
        return self.block_k if self.kernel == "dkv" else self.block_q

    @property
    def block(self) -> int:
        """Rows of a streamed block."""
        return self.block_q if self.kernel == "dkv" else self.block_k

    def shared_memory(self, head: int) -> int:
        """Bytes of shared memory at 2 bytes a number, for heads of that width: what Mosaic asks for, to `SMALL`."""
        at_rest = 1 if self.kernel == "forward" else 2
        vectors = {"forward": self.rest, "dq": 2 * self.rest, "dkv": 2 * self.block * self.stages}[self.kernel]
        return 2 * head * (at_rest * self.rest + 2 * self.block * self.stages) + 4 * vectors


TUNED = {
    64: (Config("forward", stages=3), Config("dq", stages=2), Config("dkv", block_q=64, stages=4)),
    128: (Config("forward", stages=2), Config("dq", block_k=64, stages=3), Config("dkv", block_q=64, stages=3)),
}
"""The configurations of the forward, dq and dkv kernels, by width of the heads."""


def tuned(kernel: str, head: int, configs: Mapping[str, Config] | None = None) -> Config:
    """The configuration of a kernel: given, or measured on this kind of GPU, or of the table, or of the kernel."""
    if configs and kernel in configs:
        return configs[kernel]
    found = measured(name_of(kernel, head))
    if found is not None:
        return Config(kernel, **found)
    return next((config for config in TUNED.get(head, ()) if config.kernel == kernel), Config(kernel))


def name_of(kernel: str, head: int) -> str:
    """Of a kernel, in a table of measured tiles."""
    return f"mosaic/{kernel}/{head}"


def neighbours(head: int, config: Config) -> list[Config]:
    """What differs from `config` in one number, one step, and fits into shared memory."""
    streamed = "block_q" if config.kernel == "dkv" else "block_k"
    blocks = (config.block - 64, config.block + 64)
    steps = [replace(config, **{streamed: size}) for size in blocks if 64 <= size <= 256]
    steps += [replace(config, stages=count) for count in (config.stages - 1, config.stages + 1) if 1 <= count <= 6]
    return [c for c in steps if c.shared_memory(head) + SMALL <= SHARED_MEMORY]


@dataclass(frozen=True)
class Order:
    """The order of the work: `pairs` of batch element and head, `tiles` tiles each.

    Pairs are taken in sections whose streamed arrays fit in the L2 cache together; inside a section all pairs of one
    tile come before the next tile. With `longest_last` (a causal mask: later queries see more) tiles are taken
    backwards, so that the long ones start first and the short ones fill the gaps (longest processing time first).
    """

    pairs: int
    tiles: int
    section: int
    longest_last: bool

    @classmethod
    def of(cls, pairs: int, tiles: int, *, bytes_of_pair: int, longest_last: bool) -> "Order":
        """The largest sections that divide `pairs` and fit in the cache."""
        fitting = max(1, L2_SHARE // bytes_of_pair)
        section = max(size for size in range(1, pairs + 1) if pairs % size == 0 and size <= fitting)
        return cls(pairs, tiles, section, longest_last)

    def __len__(self) -> int:
        return self.pairs * self.tiles

    def __getitem__(self, work):
        """(pair, tile) of a piece of work, an int or a traced int32."""
        section, rest = divide(work, self.section * self.tiles)
        tile, pair = divide(rest, self.section)
        return section * self.section + pair, self.tiles - 1 - tile if self.longest_last else tile


def divide(x, by: int):
    """Quotient and remainder of x >= 0, an int or a traced int32; the kernels know no floor division."""
    if isinstance(x, int):
        return divmod(x, by)
    return lax.div(x, jnp.asarray(by, x.dtype)), lax.rem(x, jnp.asarray(by, x.dtype))
