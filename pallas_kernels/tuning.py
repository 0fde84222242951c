"""Tile sizes by measurement: one JSON table for each kind of GPU, written by tools/tune.py and read by the kernels.

A kernel takes the tiles that were measured on the kind of GPU that JAX runs on. Where there are none, as on a machine
without a GPU that compiles for one, it takes those of its own table, which were chosen by registers and spills.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TypeVar

import jax

FOLDER = Path(__file__).parent / "tuned"
"""Holds <kind of GPU>.json: {kernel: {"tiles": {...}, "milliseconds": ..., ...}}."""

Tiles = TypeVar("Tiles", bound=Hashable)


def measured(kernel: str) -> dict[str, int] | None:
    """The tiles of a kernel, such as "triton/forward/64", that are the fastest on this kind of GPU; None: unknown."""
    if jax.default_backend() != "gpu":
        return None
    return read(path_of(jax.devices()[0].device_kind)).get(kernel, {}).get("tiles")


def path_of(kind: str) -> Path:
    """The table of a kind of GPU, such as "NVIDIA H200"."""
    return FOLDER / (re.sub(r"\W+", "_", kind).lower() + ".json")


def tables() -> dict[str, dict[str, dict[str, int]]]:
    """{kind of GPU: {kernel: tiles}} of all tables there are."""
    files = sorted(FOLDER.glob("*.json"))
    return {file.stem: {kernel: row["tiles"] for kernel, row in read(file).items()} for file in files}


@functools.cache
def read(path: Path) -> dict[str, dict]:
    """A whole table; empty where there is none."""
    return json.loads(path.read_text())["kernels"] if path.exists() else {}


def climb(
    start: Tiles, neighbours: Callable[[Tiles], Iterable[Tiles]], cost: Callable[[Tiles], float]
) -> tuple[Tiles, dict[Tiles, float]]:
    """(the best, the cost of all that were tried): from `start` on always to the best neighbour, while that is better.

    Each candidate is measured once. An infinite cost is one that cannot run.
    """
    costs = {start: cost(start)}
    best, last = start, None
    while best != last:
        costs |= {tiles: cost(tiles) for tiles in neighbours(best) if tiles not in costs}
        best, last = min(costs, key=costs.get), best
    if math.isinf(costs[best]):
        raise RuntimeError(f"neither {start} nor any tiles next to it can run here")
    return best, costs
