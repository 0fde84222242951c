"""What the kernels ask of an attention problem, and the arrays they get: refusals, padding, schedule.

Any length is supported. Bulk copies need lengths that are multiples of 8, so other lengths are padded with zeros (a
copy of queries, keys and values). Beyond the last row a bulk copy reads zeros and writes nothing, and the mask tests
the index of a key.
"""

import functools
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.mask import ARRAYS
from pallas_kernels.dot_product_attention.problem import Settings, mask_of
from pallas_kernels.dot_product_attention.schedule import Tiling, plan
from pallas_kernels.mosaic.config import KERNELS, TILE, TUNED, Config, tuned
from pallas_kernels.mosaic.tile import COLUMNS, LOG2E, ROWS

MISCOMPILES = (12, 8, 0), (12, 9, 86)
"""From the first to below the second version, that of CUDA 12.9.1, the assembler miscompiles masked tiles (known to the
kernels that JAX ships; they go by the version of the CUDA runtime, which is the same for 12.9.0 and 12.9.1)."""


def refuse(operands: Arrays, settings: Settings) -> None:
    """Raises NotImplementedError, in one sentence, for what these kernels do not support."""
    query, key, value = operands["query"], operands["key"], operands["value"]
    others = {"bias": "a bias", "sinks": "sinks"} | {
        name: f"a mask with {name}" for name in ARRAYS if name not in ROWS + COLUMNS
    }
    for name, feature in others.items():
        if name in operands:
            _no(feature, 'use implementation="triton" or "xla"')
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        _no(f"{query.dtype}", 'convert to bfloat16 or float16, or use implementation="triton" or "xla"')
    if not query.dtype == key.dtype == value.dtype:
        _no(f"query, key and value of {query.dtype}, {key.dtype} and {value.dtype}", "convert them to one dtype")
    if query.shape[-1] != value.shape[-1]:
        _no(f"keys {query.shape[-1]} wide with values {value.shape[-1]} wide", 'use implementation="triton" or "xla"')
    if query.shape[-1] not in TUNED:
        widths = " or ".join(map(str, TUNED))
        _no(f"heads {query.shape[-1]} wide (only {widths})", 'use implementation="triton" or "xla"')
    if settings.scale <= 0:
        _no(f"scale = {settings.scale}", "negate the queries and make it positive")
    first, fixed = MISCOMPILES
    if masked(operands, settings) and first <= (assembler() or fixed) < fixed:
        _no("masks on CUDA 12.8.0 to 12.9.0, whose assembler miscompiles them", "upgrade CUDA to 12.9.1")


def _no(feature: str, remedy: str):
    raise NotImplementedError(f"mosaic: no support for {feature}; {remedy}")


@functools.cache
def assembler() -> tuple[int, ...] | None:
    """The version of the assembler that JAX finds, such as (12, 9, 86); None where it finds none."""
    import jax.experimental.mosaic.gpu  # noqa: F401 it says where CUDA is

    program = Path(os.environ.get("MOSAIC_GPU_CUDA_ROOT", "/usr/local/cuda")) / "bin" / "ptxas"
    if not program.exists():
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.search(r"V(\d+)\.(\d+)\.(\d+)", said).groups()))


def masked(operands: Arrays, settings: Settings) -> bool:
    """Whether any rule hides a key."""
    return bool(mask_of(operands, settings).rules)


def tilings(operands: Arrays, settings: Settings) -> set[Tiling]:
    """Whose schedules the kernels ask for."""
    if not masked(operands, settings):
        return set()
    return {tuned(kernel, operands["query"].shape[-1]).tiling for kernel in KERNELS}


def padded(x: jax.Array, axis: int, multiple: int, fill=0) -> jax.Array:
    """x, longer by `fill` along an axis, up to a multiple."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)], constant_values=fill)


@dataclass(frozen=True)
class Prepared:
    """A problem as the kernels take it. Arrays have a leading axis of size B or 1."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    mask: Arrays
    """The arrays of the mask, padded to whole tiles and blocks."""
    bounds: jax.Array | None
    """(#B, tiles, 4) low, high, full_low, full_high; None without a mask."""
    batch: int
    queries: int
    keys: int
    heads: int
    group: int
    """Query heads that read one key head."""
    head: int
    """Width of a head."""
    config: Config

    @property
    def tiles(self) -> int:
        """Tiles at rest of one pair of batch element and head."""
        return -(-(self.keys if self.config.kernel == "dkv" else self.queries) // self.config.rest)

    def static_bounds(self) -> tuple[int, int, int, int]:
        """The bounds of every tile of a problem without a mask; only what reaches beyond the last key is tested."""
        length = self.queries if self.config.kernel == "dkv" else self.keys
        blocks, whole = -(-length // self.config.block), length // self.config.block
        return 0, blocks, 0, blocks if self.config.kernel == "dkv" else whole


def prepare(operands: Arrays, settings: Settings, config: Config) -> Prepared:
    """The arrays of a problem for one kernel."""
    query, key, value = operands["query"], operands["key"], operands["value"]
    (_, queries, heads, head), keys = query.shape, key.shape[1]
    mask = {}
    for name, x in ranged(operands, settings).items():
        block, fill = (config.block_q, -1) if name in ROWS else (config.block_k, -2)
        mask[name] = padded(x.astype(jnp.int32), 1, block, fill)
    bounds = None
    if masked(operands, settings):
        bounds = plan(operands, settings, config.tiling)
    return Prepared(
        *(padded(x, 1, 8) for x in (query, key, value)),
        mask=mask,
        bounds=bounds,
        batch=max(x.shape[0] for x in operands.values()),
        queries=queries,
        keys=keys,
        heads=heads,
        group=heads // key.shape[2],
        head=head,
        config=config,
    )


def ranged(operands: Arrays, settings: Settings) -> Arrays:
    """The arrays of the mask, in which a band has become a range of keys for each query: one rule less to test."""
    mask = {name: operands[name] for name in ROWS + COLUMNS if name in operands}
    i = jnp.arange(operands["query"].shape[1])[None]
    if settings.left is not None:
        mask["key_start"] = jnp.maximum(mask.get("key_start", 0), i - settings.left)
    if settings.right is not None:
        mask["key_end"] = jnp.minimum(mask.get("key_end", operands["key"].shape[1]), i + settings.right + 1)
    return mask


def row_statistics(cotangents, outputs) -> jax.Array:
    """lse log2(e) and delta of each query, as the backward kernels read them: float32 (B, N, 2, T up to whole tiles).

    The first is infinite where p must be 0: in rows that see no key, and beyond the last row.
    """
    (dout, dlse), (out, lse) = cotangents, outputs
    empty = jnp.isneginf(lse)
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - dlse
    both = ((jnp.where(empty, jnp.inf, lse * LOG2E), jnp.inf), (jnp.where(empty, 0.0, delta), 0.0))
    return jnp.stack([padded(jnp.swapaxes(x.astype(jnp.float32), 1, 2), 2, TILE, fill) for x, fill in both], axis=2)
