"""Rows on the host: those of a batch stacked, and of any number of them in blocks of one size.

A compiled function is compiled anew for every shape. So what runs over many rows takes them in blocks of one size, of
which the last is filled up with its last row; rows that see nothing of one another come out the same.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

__all__ = ["Batch", "filled", "in_blocks", "stacked"]

Batch = dict[str, np.ndarray]


def stacked(rows: Iterable[Mapping[str, Any]]) -> Batch:
    """Each field of the rows, of which there is at least one, as one array."""
    rows = list(rows)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def filled(rows: Shaped[np.ndarray, "N *shape"], size: int) -> Shaped[np.ndarray, "size *shape"]:
    """The rows, at most `size` of them, and the last of them again until there are as many."""
    return rows[np.minimum(np.arange(size), len(rows) - 1)]


def in_blocks(function: Callable, *arrays: np.ndarray | None, size: int, axis: int = 0) -> np.ndarray:
    """`function(*arrays)`, called with blocks of `size` rows of each; its rows lie along `axis` of what it returns.

    None in the place of an array is handed on.
    """
    count, done = len(arrays[0]), []
    for first in range(0, count, size):
        blocks = (None if rows is None else filled(rows[first : first + size], size) for rows in arrays)
        done.append(np.asarray(function(*blocks)))
    return np.concatenate(done, axis=axis)[(slice(None),) * axis + (slice(count),)]
