"""Distances to nearest neighbours: how far each sample lies from a set, to tell invention from memory."""

import numpy as np
from jaxtyping import Float, Num
from scipy.spatial.distance import pdist

from genjax.errors import InputError

__all__ = ["nearest_distances", "spread"]

BLOCK = 1024
"""Queries compared at a time: memory is BLOCK x M."""


def nearest_distances(queries: Num[np.ndarray, "N D"], references: Num[np.ndarray, "M D"]) -> Float[np.ndarray, " N"]:
    """The Euclidean distance from each query to the nearest reference, float64.

    Raises InputError when there is no reference, and when the widths differ.
    """
    queries, references = np.asarray(queries, np.float64), np.asarray(references, np.float64)
    if len(references) == 0:
        raise InputError("there are no references to be near to")
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise InputError(
            f"queries and references are arrays (N, D) and (M, D), not of shapes {queries.shape} and {references.shape}"
        )
    halves = np.square(references).sum(axis=1) / 2
    distances = np.empty(len(queries))
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        # |q - r|^2 / 2 up to |q|^2 / 2 finds the neighbour; the distance itself is then free of cancellation.
        nearest = np.argmin(halves - block @ references.T, axis=1)
        distances[start : start + BLOCK] = np.linalg.norm(block - references[nearest], axis=1)
    return distances


def spread(points: Num[np.ndarray, "N D"], labels: Num[np.ndarray, " N"] | None = None) -> float:
    """The mean Euclidean distance of two points, of one class where there are labels: the diversity of samples.

    A class counts as much as it has pairs. Raises InputError where no two points are of one class.
    """
    points = np.asarray(points, np.float64)
    groups = [points] if labels is None else [points[labels == label] for label in np.unique(labels)]
    distances = np.concatenate([pdist(group) for group in groups])
    if not len(distances):
        raise InputError("no two points are of one class, and their spread is a mean over pairs")
    return float(distances.mean())
