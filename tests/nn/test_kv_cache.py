"""Laws of the cache of keys and values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.kv_cache import empty_cache


@jax.jit
def write(cache, keys, values):
    return cache.layers[0].write(cache.slots(keys.shape[1]), keys, values)


def tokens(seed: int, count: int, heads: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, count, heads, 4)).astype(np.float32)


def test_each_row_is_written_behind_its_own_length():
    cache = empty_cache(2, 2, 6, 3, 4)._replace(length=jnp.array([1, 3]))
    keys, values = tokens(0, 2), tokens(1, 2)
    layer = write(cache, keys, values)
    for row, start in enumerate([1, 3]):
        for whole, part in [(layer.keys, keys), (layer.values, values)]:
            expected = np.zeros((6, 3, 4), np.float32)
            expected[start : start + 2] = part[row]
            np.testing.assert_array_equal(whole[row], expected.swapaxes(0, 1))


def test_what_does_not_fit_is_dropped_and_overwrites_nothing():
    empty = empty_cache(1, 2, 6, 3, 4)
    full = write(empty, tokens(0, 6), tokens(1, 6))
    found = write(empty._replace(layers=(full,), length=jnp.array([5, 6])), tokens(2, 3), tokens(3, 3))
    np.testing.assert_array_equal(found.keys[0, :, :5], full.keys[0, :, :5])
    np.testing.assert_array_equal(found.keys[0, :, 5], tokens(2, 3)[0, 0])
    np.testing.assert_array_equal(found.keys[1], full.keys[1])


def test_it_stores_in_the_type_it_was_made_with():
    cache = empty_cache(3, 2, 4, 3, 4, jnp.bfloat16)
    layer = write(cache, tokens(0, 2), tokens(1, 2))
    assert layer.keys.dtype == layer.values.dtype == jnp.bfloat16
    assert cache.capacity == 4 and len(cache.layers) == 3


def attended(count: int):
    """(what `count` tokens of six query heads see behind rows of lengths 1 and 3, the same by the definition)."""
    cache = empty_cache(1, 2, 8, 3, 4)
    layer = write(cache, tokens(0, 8), tokens(1, 8))  # what lies beyond a row's end is there, and is not seen
    slots = cache._replace(length=jnp.array([1, 3])).slots(count)
    query = tokens(2, count, heads=6)
    expected = np.zeros((2, count, 6, 4))
    for row, t, head in np.ndindex(2, count, 6):
        upto = int(slots[row, t]) + 1
        logits = np.float64(tokens(0, 8)[row, :upto, head // 2]) @ query[row, t, head] / 2
        weights = np.exp(logits - logits.max())
        expected[row, t, head] = weights / weights.sum() @ tokens(1, 8)[row, :upto, head // 2]
    return np.asarray(layer.attend(jnp.asarray(query), slots)), expected


@pytest.mark.parametrize("count", [1, 2])
def test_a_token_sees_all_up_to_itself_and_nothing_behind(count):
    np.testing.assert_allclose(*attended(count), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_loop_over_tokens_writes_in_place(rows):
    """What XLA makes of a compiled loop copies no layer's keys or values from one token to the next."""
    cache = empty_cache(1, rows, 32, 3, 4)
    shape = "f32[" + ",".join(map(str, cache.layers[0].keys.shape)) + "]"

    def step(cache, token):
        slots = cache.slots(1)
        layer = cache.layers[0].write(slots, token, token)
        return cache._replace(layers=(layer,), length=cache.length + 1), layer.attend(token, slots)

    loop = jax.jit(lambda cache, tokens: jax.lax.scan(step, cache, tokens), donate_argnums=0)
    text = loop.lower(cache, jnp.zeros((8, rows, 1, 3, 4))).compile().as_text()
    copies = [line for line in text.splitlines() if " copy(" in line and shape in line]
    assert shape in text and not copies, copies
