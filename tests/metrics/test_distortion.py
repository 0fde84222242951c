"""Laws of the peak signal-to-noise ratio."""

import numpy as np
import pytest

from genjax.errors import InputError
from genjax.metrics.distortion import psnr

RNG = np.random.default_rng(0)


def test_every_tenth_of_the_error_is_twenty_decibels():
    """An error of 2, the whole range, has 0 decibels."""
    black = np.full((1, 4, 4, 3), -1.0)
    for tenths, decibels in ((0, 0.0), (1, 20.0), (3, 60.0)):
        np.testing.assert_allclose(psnr(black, black + 2 / 10**tenths), decibels, atol=1e-9)
    assert np.isinf(psnr(black, black))


def test_it_is_that_of_bytes_at_a_peak_of_255():
    a, b = RNG.integers(0, 256, size=(2, 3, 5, 5, 1)).astype(np.float64)
    by_bytes = 10 * np.log10(255**2 / np.square(a - b).reshape(3, -1).mean(axis=1))
    np.testing.assert_allclose(psnr(a / 127.5 - 1, b / 127.5 - 1), by_bytes, rtol=1e-12)


def test_what_is_out_of_range_counts_as_it_is_shown():
    assert np.isinf(psnr(np.full((1, 2), 1.0), np.full((1, 2), 3.0)))


def test_pictures_of_other_shapes_are_refused():
    with pytest.raises(InputError, match="of their size"):
        psnr(np.zeros((2, 3)), np.zeros((2, 4)))
