"""Laws of the peak signal-to-noise ratio."""

import numpy as np
import pytest

from genjax.errors import InputError
from genjax.metrics.distortion import psnr

RNG = np.random.default_rng(0)


def test_every_tenth_of_the_error_is_twenty_decibels():
    """An error of 2, the whole range, has 0 decibels."""
    black = np.full((1, 4, 4, 3), -1.0)
    for tenths, decibels in ((0, 0.0), (1, 20.0), (2, 40.0)):
        np.testing.assert_allclose(psnr(black, black + 2 / 10**tenths), decibels, atol=1e-9)


def test_it_is_that_of_bytes_at_a_peak_of_255():
    a, b = RNG.integers(0, 256, size=(2, 3, 5, 5, 1)).astype(np.float64)
    by_bytes = 10 * np.log10(255**2 / np.square(a - b).reshape(3, -1).mean(axis=1))
    np.testing.assert_allclose(psnr(a / 127.5 - 1, b / 127.5 - 1), by_bytes, rtol=1e-12)


def test_equal_pictures_have_the_ratio_of_rounding_to_bytes():
    """Bytes have a uniform error of half a step at most: 20 log10(255) + 10 log10(12)."""
    expected = 20 * np.log10(255) + 10 * np.log10(12)
    np.testing.assert_allclose(psnr(np.zeros((1, 9)), np.zeros((1, 9))), expected)
    exact = RNG.uniform(-0.99, 0.99, size=(1, 100_000))
    rounded = np.rint((exact + 1) * 127.5) / 127.5 - 1
    np.testing.assert_allclose(psnr(exact, rounded), expected, atol=0.05)


def test_what_is_out_of_range_counts_as_it_is_shown():
    one, more = np.full((1, 2), 1.0), np.full((1, 2), 3.0)
    assert psnr(one, more) == psnr(one, one)


def test_pictures_of_other_shapes_are_refused():
    with pytest.raises(InputError, match="of their size"):
        psnr(np.zeros((2, 3)), np.zeros((2, 4)))
