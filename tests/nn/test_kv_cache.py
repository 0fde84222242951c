"""Laws of the cache of keys and values."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax.nn.kv_cache import empty_cache

WRITE = jax.jit(lambda cache, layer, keys, values: cache.write(layer, keys, values))


def tokens(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, count, 3, 4)).astype(np.float32)


def test_each_row_is_written_behind_its_own_length_in_one_layer():
    cache = empty_cache(2, 2, 6, 3, 4)._replace(length=jnp.array([1, 3]))
    keys, values = tokens(0, 2), tokens(1, 2)
    cache = WRITE(cache, 1, keys, values)
    for row, start in enumerate([1, 3]):
        for whole, part in [(cache.keys, keys), (cache.values, values)]:
            expected = np.zeros((6, 3, 4), np.float32)
            expected[start : start + 2] = part[row]
            np.testing.assert_array_equal(whole[1, row], expected)
    assert not cache.keys[0].any() and not cache.values[0].any()
    np.testing.assert_array_equal(cache.read(1)[0], cache.keys[1])
    np.testing.assert_array_equal(cache.length, [1, 3])


def test_what_does_not_fit_is_dropped_and_overwrites_nothing():
    full = WRITE(empty_cache(1, 2, 6, 3, 4), 0, tokens(0, 6), tokens(1, 6))
    found = WRITE(full._replace(length=jnp.array([5, 6])), 0, tokens(2, 3), tokens(3, 3))
    np.testing.assert_array_equal(found.keys[0, 0, :5], full.keys[0, 0, :5])
    np.testing.assert_array_equal(found.keys[0, 0, 5], tokens(2, 3)[0, 0])
    np.testing.assert_array_equal(found.keys[0, 1], full.keys[0, 1])


def test_it_stores_in_the_type_it_was_made_with():
    cache = WRITE(empty_cache(1, 2, 4, 3, 4, jnp.bfloat16), 0, tokens(0, 2), tokens(1, 2))
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    assert cache.capacity == 4
