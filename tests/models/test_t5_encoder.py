"""Laws of T5's encoder; that it equals transformers' is in tests/interop/test_t5.py."""

import functools

import jax
import numpy as np
import pytest
from flax.core import meta

from genjax.models.t5_encoder import SIZES, T5Encoder, relative_buckets

MODEL = T5Encoder(vocabulary=11, width=12, depth=2, num_heads=3, head_dim=5, mlp_width=16, buckets=8, max_distance=16)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9)).astype(np.int32)


def parameters(model):
    """Names, shapes and types; nothing is computed."""
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    return meta.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]


@functools.cache
def weights():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), parameters(MODEL))


apply = jax.jit(lambda params, tokens: MODEL.apply({"params": params}, tokens))


def test_without_a_bias_by_distance_tokens_have_no_order():
    order = np.random.default_rng(1).permutation(9)
    blind = weights() | {"distances": np.zeros_like(weights()["distances"])}
    np.testing.assert_allclose(apply(blind, TOKENS[:, order]), apply(blind, TOKENS)[:, order], rtol=0, atol=2e-5)
    assert np.abs(apply(weights(), TOKENS[:, order]) - apply(weights(), TOKENS)[:, order]).max() > 0.01


def test_a_number_for_all_distances_of_a_head_changes_nothing():
    shifted = weights() | {"distances": weights()["distances"] + np.array([1.0, -2.0, 0.5], np.float32)}
    np.testing.assert_allclose(apply(shifted, TOKENS), apply(weights(), TOKENS), rtol=0, atol=2e-5)


def test_what_is_multiplied_by_a_number_before_the_first_norm_stays():
    """Nothing has a bias: the stream's direction is all that counts where it is large."""
    scaled = weights() | {"embed": {"embedding": 1e4 * weights()["embed"]["embedding"]}}
    embedded = weights()["embed"]["embedding"][TOKENS]
    normed = embedded / np.sqrt((embedded**2).mean(-1, keepdims=True)) * weights()["norm"]["scale"]
    np.testing.assert_allclose(apply(scaled, TOKENS), normed, rtol=0, atol=1e-2)


def test_buckets_are_exact_nearby_and_logarithmic_beyond():
    length = 400
    buckets = relative_buckets(length, 32, 128)
    behind = buckets[-1, ::-1]  # of the last token, by distance
    np.testing.assert_array_equal(behind[:8], np.arange(8))
    assert (np.diff(behind) >= 0).all() and behind[-1] == 15
    for distance in (9, 11, 13, 20, 40, 60, 90, 127):  # none where the logarithm is a whole number
        assert behind[distance] == 8 + int(np.log(distance / 8) / np.log(16) * 8)
    assert (behind[128:] == 15).all()
    ahead = buckets[0]
    np.testing.assert_array_equal(ahead[1:], 16 + behind[1:])
    assert ahead[0] == 0
    for place in (5, 100):  # only distances count
        np.testing.assert_array_equal(buckets[place, place:], buckets[0, : length - place])


@pytest.mark.parametrize(
    ("kind", "count"), [("t5-v1.1-small", 35_332_800), ("t5-v1.1-base", 109_628_544), ("t5-v1.1-xxl", 4_762_310_656)]
)
def test_the_published_sizes_have_the_published_numbers_of_parameters(kind, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters(T5Encoder(**SIZES[kind])))) == count


def test_sizes_below_the_least_are_refused():
    with pytest.raises(ValueError, match="buckets"):
        jax.eval_shape(MODEL.clone(buckets=2).init, jax.random.key(0), TOKENS)
    with pytest.raises(ValueError, match="max_distance = 2 is no more than the 2 exact distances"):
        jax.eval_shape(MODEL.clone(max_distance=2).init, jax.random.key(0), TOKENS)
