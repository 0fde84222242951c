"""Laws of guided logits: what is told, led away from what is not, in prompts and in single tokens alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from genjax.language.decoding import TokenSampler, generate
from genjax.language.logits_guidance import GuidedCache, guided, guided_logits
from genjax.models.gpt import GPT

MODEL = GPT(vocabulary=9, positions=8, width=8, depth=1, num_heads=2)
PREFIX, UNTOLD = np.array([[5, 6], [7, 5], [8, 8]]), np.array([8, 7])


@pytest.fixture(scope="module")
def params():
    fresh = MODEL.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), fresh)


def empty(rows):
    return GuidedCache(MODEL.empty_cache(2 * rows, 8), jnp.zeros(rows, jnp.int32))


def by_hand(params, rows, scale):
    """Of both readings in full, without a cache."""
    other = jnp.asarray(rows).at[:, :2].set(UNTOLD)
    told, untold = (MODEL.apply({"params": params}, tokens) for tokens in (jnp.asarray(rows), other))
    return untold + scale * (told - untold)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_a_guided_network_is_the_combination_of_both_readings_token_by_token(params, scale):
    rows = np.concatenate([PREFIX, np.array([[0, 1, 2, 3], [3, 0, 4, 1], [2, 2, 2, 2]])], axis=1)
    network, cache = guided(MODEL.reader(params), UNTOLD, scale), empty(3)
    whole, _ = network(jnp.asarray(rows), cache=empty(3))
    single = []
    for token in rows.T:
        logits, cache = network(jnp.asarray(token)[:, None], cache=cache)
        single.append(logits[:, 0])
    expected = by_hand(params, rows, scale)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    np.testing.assert_allclose(np.stack(single, axis=1), expected, atol=1e-5)
    assert cache.length.tolist() == [6, 6, 6]


def test_what_is_drawn_greedily_is_the_best_of_the_combination(params):
    network = guided(MODEL.reader(params), UNTOLD, 3.0)
    choose, keys = TokenSampler(temperature=0.0), jax.random.split(jax.random.key(0), 3)
    (drawn,) = generate(network, choose, empty(3), PREFIX, [2, 2, 2], keys, tokens=4, chunk=4)
    logits = by_hand(params, np.concatenate([PREFIX, drawn], axis=1), 3.0)
    np.testing.assert_array_equal(drawn, logits[:, 1:-1].argmax(axis=-1))
    (plain,) = generate(
        Partial(MODEL.reader(params)), choose, MODEL.empty_cache(3, 8), PREFIX, [2, 2, 2], keys, tokens=4, chunk=4
    )
    assert (plain != drawn).any()


def test_rows_that_are_told_come_first():
    logits = jnp.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(guided_logits(logits, 1.0), logits[:2])
    np.testing.assert_array_equal(guided_logits(logits, 0.0), logits[2:])
