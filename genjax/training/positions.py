"""Positions in the data: what the processes of a run record of theirs, and which of them each goes on from."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["own_position", "positions_of_all", "skipped_by_all"]


def positions_of_all(own: dict[str, Any]) -> list[dict[str, Any]]:
    """The data positions of all processes, which differ where bad examples were skipped."""
    if jax.process_count() == 1:
        return [own]
    numbers = multihost_utils.process_allgather(np.array([own["batches"], own["skipped"], *own["process"]]))
    return [own | {"batches": b, "skipped": s, "process": process} for b, s, *process in numbers.tolist()]


def skipped_by_all(positions: list[dict[str, Any]]) -> int:
    """How many examples were passed over; processes that read the same share of the batches pass over the same ones."""
    return sum({tuple(position["process"]): position["skipped"] for position in positions}.values())


def own_position(positions: list[dict[str, Any]], share: tuple[int, int]) -> dict[str, Any]:
    """The position of who read this share (index, count) of the batches.

    Where the batches were shared otherwise it is any of them, one with skipped examples before others.
    """
    own = [position for position in positions if position["process"] == list(share)]
    return own[0] if own else max(positions, key=lambda position: position["skipped"])
