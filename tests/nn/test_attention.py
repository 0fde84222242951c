"""Laws of attention."""

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.attention import attention


@pytest.fixture
def qkv():
    """Queries (2, 5, 3, 4), keys and values (2, 7, 3, 4)."""
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(2, length, 3, 4)), jnp.float32) for length in (5, 7, 7))


def test_it_equals_the_softmax_of_scaled_products_one_query_at_a_time(qkv):
    query, key, value = (np.asarray(x, np.float64) for x in qkv)
    expected = np.empty_like(query)
    for b, t, n in np.ndindex(query.shape[:3]):
        weights = np.exp(key[b, :, n] @ query[b, t, n] / np.sqrt(4))
        expected[b, t, n] = weights / weights.sum() @ value[b, :, n]
    np.testing.assert_allclose(attention(*qkv), expected, atol=1e-6)


def test_the_order_of_keys_does_not_matter(qkv):
    query, key, value = qkv
    np.testing.assert_allclose(attention(query, key[:, ::-1], value[:, ::-1]), attention(*qkv), atol=1e-6)


def test_the_order_of_queries_is_the_order_of_outputs(qkv):
    query, key, value = qkv
    np.testing.assert_allclose(attention(query[:, ::-1], key, value), attention(*qkv)[:, ::-1], atol=1e-6)


def test_equal_keys_give_the_mean_value(qkv):
    query, key, value = qkv
    mean = jnp.broadcast_to(value.mean(axis=1, keepdims=True), query.shape)
    np.testing.assert_allclose(attention(query, jnp.ones_like(key), value), mean, atol=1e-6)


def test_logits_of_bfloat16_keep_what_bfloat16_cannot_tell_apart():
    # Logits 256 and 257 are one number in bfloat16, whose softmax would be (1/2, 1/2).
    query = jnp.array([[16.0, 0.5]], jnp.bfloat16).reshape(1, 1, 1, 2)
    key = jnp.array([[16.0, 0.0], [16.0, 2.0]], jnp.bfloat16).reshape(1, 2, 1, 2) * 2**0.5
    value = jnp.array([[1.0, 0.0], [0.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    output = attention(query, key, value)
    logits = np.asarray(key, np.float64).reshape(2, 2) @ [16.0, 0.5] / np.sqrt(2)
    assert output.dtype == jnp.bfloat16
    weights = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(np.float64(output).ravel(), weights, atol=0.01)


def test_the_implementation_that_a_config_names_is_the_one_asked_for(qkv):
    np.testing.assert_array_equal(attention(*qkv, implementation="xla"), attention(*qkv))
    with pytest.raises(NotImplementedError, match="implementation 'mosaic' of attention does not support float32"):
        attention(*qkv, implementation="mosaic")
