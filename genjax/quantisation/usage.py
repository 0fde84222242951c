"""How much of a codebook is used: figures of how often each code came in a whole set (Shannon 1948).

    p_k = n_k / n,    entropy = -sum p_k log2 p_k bits,    perplexity = 2^entropy,    usage = share of k with n_k > 0

Of a batch, all three are bounded by the number of its positions, and they grow with it: count a whole set, and say how
many positions it has.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from genjax.errors import InputError

__all__ = ["Usage", "count", "usage"]


class Usage(NamedTuple):
    """Figures of one codebook over one set."""

    usage: float
    """Share of the codes that came at all, in [0, 1]."""
    perplexity: float
    """Number of codes that, used alike, would have the same entropy; in [1, K]."""
    entropy: float
    """Bits per position; at most log2 K."""


def count(ids: Int[np.ndarray, "..."], size: int) -> Int[np.ndarray, " K"]:
    """How often each id in [0, size) comes; counts of parts of a set add up. Count the ids of each level alone.

    Raises InputError for an id outside the codebook.
    """
    ids = np.asarray(ids)
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        raise InputError(f"ids lie in [0, {size}), not in {ids.min()} to {ids.max()}")
    return np.bincount(ids.reshape(-1), minlength=size)


def usage(counts: Int[np.ndarray, " K"]) -> Usage:
    """The figures of these counts. Raises InputError where nothing was counted."""
    counts = np.asarray(counts, np.float64)
    if not counts.sum() > 0:
        raise InputError("usage is of at least one position, and none was counted")
    p = counts[counts > 0] / counts.sum()
    entropy = float(-np.sum(p * np.log2(p)))
    return Usage(float(np.mean(counts > 0)), 2**entropy, max(entropy, 0.0))
