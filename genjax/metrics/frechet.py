"""The Fréchet distance of two sets of features, each summed up by a Gaussian (Heusel et al. 2017, arXiv:1706.08500).

    d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1^1/2 S_2 S_1^1/2)^1/2)

This is FID when the features are Inception's; here they may be anything, pixels included. The last trace is the sum of
the singular values of S_1^1/2 S_2^1/2, so that roots are taken of symmetric matrices only: no complex numbers, and no
square root of rounding errors when a covariance is singular (fewer samples than features, constant pixels).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from genjax.errors import InputError

__all__ = ["Gaussian", "frechet_distance", "gaussian_frechet_distance", "gaussian_statistics"]


class Gaussian(NamedTuple):
    """The mean (D,) and covariance (D, D) of a set of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def frechet_distance(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> float:
    """The (squared) Fréchet distance of two sets of samples, in float64 from unbiased covariances.

    It is biased upwards for few samples, so numbers compare only at equal N and M. Raises InputError as
    `gaussian_statistics` does, and when the two sets differ in width.
    """
    return gaussian_frechet_distance(gaussian_statistics(a), gaussian_statistics(b))


def gaussian_statistics(features: Float[np.ndarray, "N D"]) -> Gaussian:
    """Mean and unbiased covariance of samples in rows.

    Raises InputError for fewer than two samples, for anything but rows of features, and for infinite or NaN features.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise InputError(f"features are rows of an array (N, D), not an array of shape {features.shape}")
    if len(features) < 2:
        raise InputError(f"a covariance takes at least 2 samples, and there are {len(features)}")
    if not np.isfinite(features).all():
        raise InputError(f"{np.sum(~np.isfinite(features).all(axis=1))} of {len(features)} samples are not finite")
    mean = features.mean(axis=0)
    centred = features - mean
    return Gaussian(mean, centred.T @ centred / (len(features) - 1))


def gaussian_frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The (squared) Fréchet distance of two Gaussians. Raises InputError when they differ in width."""
    if a.mean.shape != b.mean.shape:
        raise InputError(f"the two sets have features of different widths, {len(a.mean)} and {len(b.mean)}")
    overlap = np.linalg.svd(_root(a.covariance) @ _root(b.covariance).T, compute_uv=False).sum()
    shift = np.square(a.mean - b.mean).sum()
    # The distance is not negative; its rounding error may be.
    return max(0.0, float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap))


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with R^T R = covariance: its symmetric root up to a rotation on the left, which singular values do not see."""
    variances, axes = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(variances, 0))[:, None] * axes.T
