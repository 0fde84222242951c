"""Laws of the embeddings of time and position."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genjax.errors import InputError
from genjax.nn.embeddings import sincos_1d, sincos_2d, sincos_2d_centre_crop, timestep_embedding

TIMES = np.array([0.0, 0.37, 12.5, 999.0, 1000.0], np.float32)


def test_cosines_and_sines_of_a_time_square_to_one():
    cosine, sine = np.split(np.asarray(timestep_embedding(jnp.asarray(TIMES), 16)), 2, axis=-1)
    np.testing.assert_allclose(cosine**2 + sine**2, 1, rtol=1e-5)


def test_a_timestep_is_cosines_then_sines_of_geometric_frequencies():
    for t, row in zip(TIMES, timestep_embedding(jnp.asarray(TIMES), 16), strict=True):
        angles = [float(t) / 10_000 ** (i / 8) for i in range(8)]
        np.testing.assert_allclose(row, [math.cos(a) for a in angles] + [math.sin(a) for a in angles], atol=2e-4)


def test_the_slowest_timestep_frequency_approaches_the_longest_period():
    sine = timestep_embedding(jnp.ones(1), 256, max_period=100.0)[0, -1]
    np.testing.assert_allclose(sine, math.sin(100 ** (-127 / 128)), rtol=1e-5)


def test_ddpms_timestep_is_sines_first_and_its_slowest_period_is_the_longest():
    for t, row in zip(TIMES, timestep_embedding(TIMES, 16, frequency_shift=1, sines_first=True), strict=True):
        angles = [float(t) / 10_000 ** (i / 7) for i in range(8)]
        np.testing.assert_allclose(row, [math.sin(a) for a in angles] + [math.cos(a) for a in angles], atol=2e-4)


def test_a_timestep_embedding_is_float32_whatever_its_input():
    assert timestep_embedding(jnp.ones(2, jnp.bfloat16), 8).dtype == jnp.float32


@pytest.mark.parametrize("shift", [-1, 4, 5])
def test_a_shift_that_leaves_no_frequencies_is_refused(shift):
    with pytest.raises(
        InputError, match=rf"^frequency_shift lies in \[0, 4\), for 4 frequencies of time, not at {shift}$"
    ):
        timestep_embedding(TIMES, 8, frequency_shift=shift)


@pytest.mark.parametrize("width", [0, 1, 7])
def test_sines_and_cosines_of_a_time_are_equally_many(width):
    with pytest.raises(InputError, match=f"^an embedding of time has an even number of channels, not {width}$"):
        timestep_embedding(TIMES, width)


def test_a_shift_of_position_rotates_its_sines_and_cosines():
    # [sin, cos](p + 3) is a linear map of [sin, cos](p) that does not depend on p: what lets attention see distances.
    sine, cosine = np.split(sincos_1d(np.arange(10), 8), 2, axis=-1)
    frequencies = 1e4 ** (-np.arange(4) / 4)
    rotated = sine * np.cos(3 * frequencies) + cosine * np.sin(3 * frequencies)
    np.testing.assert_allclose(sincos_1d(np.arange(10) + 3, 8)[:, :4], rotated, atol=1e-12)


def grid(height, width, channels=16, max_size=12, base_size=8):
    flat = sincos_2d_centre_crop(height, width, channels, max_size=max_size, base_size=base_size)
    assert flat.shape == (height * width, channels) and flat.dtype == np.float32
    return flat.reshape(height, width, channels)


@given(st.integers(1, 12), st.integers(1, 12))
def test_a_small_grid_is_the_centre_of_the_largest(height, width):
    top, left = (12 - height) // 2, (12 - width) // 2
    np.testing.assert_array_equal(grid(height, width), grid(12, 12)[top : top + height, left : left + width])


def test_a_position_is_sines_and_cosines_of_its_column_and_then_of_its_row():
    positions = grid(12, 12)
    for row, column in [(0, 0), (3, 7), (11, 2)]:
        expected = []
        for place in (column, row):
            angles = [place * 8 / 12 / 10_000 ** (i / 4) for i in range(4)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        np.testing.assert_allclose(positions[row, column], expected, atol=1e-6)


@given(st.integers(1, 12), st.integers(1, 12))
def test_a_grid_of_whole_positions_is_a_corner_of_the_largest_in_its_own_units(height, width):
    whole = sincos_2d(height, width, 16).reshape(height, width, 16)
    np.testing.assert_array_equal(whole, grid(12, 12, base_size=12)[:height, :width])


def test_transposing_a_grid_exchanges_the_halves_of_its_channels():
    tall, wide = grid(6, 4), grid(4, 6)
    np.testing.assert_array_equal(tall.transpose(1, 0, 2), np.roll(wide, 8, axis=-1))


def test_no_two_positions_are_alike():
    flat = grid(12, 12).reshape(144, 16)
    assert np.linalg.norm(flat[:, None] - flat[None], axis=-1)[~np.eye(144, dtype=bool)].min() > 0.1


@pytest.mark.parametrize(("height", "width"), [(13, 4), (4, 13)])
def test_a_grid_larger_than_the_largest_is_refused(height, width):
    with pytest.raises(ValueError, match=f"{height} x {width} tokens does not fit into pos_embed_max_size = 12"):
        grid(height, width)
