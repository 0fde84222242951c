"""Laws of rotary positions."""

import jax.numpy as jnp
import numpy as np

from genjax.nn.rotary import angles, positions_in_segments, rotary

THETA = 100.0


def turned(x, positions):
    return rotary(x, x, *angles(jnp.asarray(positions), x.shape[-1], theta=THETA), layout="halves")[0]


def test_a_pair_of_numbers_is_a_complex_number_times_a_unit_one():
    x = np.random.default_rng(0).normal(size=(1, 5, 2, 6)).astype(np.float32)
    positions = np.array([[0, 1, 2, 7, 40]])
    frequencies = THETA ** (-2 * np.arange(3) / 6)
    expected = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * positions[..., None] * frequencies)[:, :, None]
    found = turned(x, positions)
    np.testing.assert_allclose(found, np.concatenate([expected.real, expected.imag], -1), rtol=0, atol=1e-5)


def test_products_depend_on_the_distance_of_positions_only():
    query, key = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    products = [jnp.vdot(turned(query, [[start + 3]]), turned(key, [[start]])) for start in (0, 1, 50, 1000)]
    np.testing.assert_allclose(products, products[0] * np.ones(4), rtol=0, atol=1e-4)


def test_tables_are_of_float32_and_tell_large_positions_apart():
    cos, sin = angles(jnp.array([[256, 257]]), 2, theta=THETA)
    assert cos.dtype == sin.dtype == jnp.float32
    np.testing.assert_allclose(cos, np.cos([[[256], [257]]]), atol=1e-5)


def test_positions_start_anew_with_every_run_of_an_id():
    segments = np.array([[0, 0, 0, 1, 2, 2, -1, -1], [-1, 5, 5, 5, 5, 3, 3, 3]])
    np.testing.assert_array_equal(
        positions_in_segments(jnp.asarray(segments)), [[0, 1, 2, 0, 0, 1, 0, 1], [0, 0, 1, 2, 3, 0, 1, 2]]
    )
