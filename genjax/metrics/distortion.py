"""How far pictures are from those they should be."""

import numpy as np
from jaxtyping import Float

from genjax.errors import InputError

__all__ = ["psnr"]

ROUNDING = (2 / 255) ** 2 / 12
"""Mean square error of rounding to the 256 values of a byte."""


def psnr(images: Float[np.ndarray, "N *shape"], others: Float[np.ndarray, "N *other"]) -> Float[np.ndarray, " N"]:
    """Peak signal-to-noise ratio of each picture in decibels, 10 log10(peak^2 / mean square error); peak 2.

    Pictures are in [-1, 1]; values outside are clipped, as they are where they are shown. No error counts as smaller
    than that of rounding to bytes, so that equal pictures have 58.9 decibels. The figure of a set is the mean over its
    pictures (of the ratios, not of the errors). Raises InputError for other shapes.
    """
    images, others = np.asarray(images, np.float64), np.asarray(others, np.float64)
    if images.shape != others.shape:
        raise InputError(f"pictures are compared with as many of their size, not {images.shape} with {others.shape}")
    errors = np.square(np.clip(images, -1, 1) - np.clip(others, -1, 1)).reshape(len(images), -1).mean(axis=1)
    return 10 * np.log10(4 / np.maximum(errors, ROUNDING))
