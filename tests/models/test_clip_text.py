"""Laws of CLIP's text encoder; that it equals transformers' is in tests/interop/test_clip.py."""

import functools

import jax
import numpy as np
import pytest
from flax.core import meta

from genjax.models.clip_text import SIZES, CLIPText

MODEL = CLIPText(vocabulary=11, positions=8, width=12, depth=3, num_heads=3, mlp_width=16, projection=5, end=10)
TOKENS = np.array([[9, 3, 1, 4, 10, 10, 10, 10], [9, 2, 10, 0, 0, 0, 0, 0]], np.int32)


def parameters(model):
    """Names, shapes and types; nothing is computed."""
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    return meta.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]


@functools.cache
def weights():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), parameters(MODEL))


@functools.cache
def features(*rows):
    return jax.tree.map(np.asarray, jax.jit(MODEL.apply)({"params": weights()}, np.array(rows, np.int32)))


def said(tokens):
    return features(*map(tuple, tokens.tolist()))


def test_what_stands_behind_the_end_changes_nothing_up_to_it():
    other = TOKENS.copy()
    other[0, 5:], other[1, 3:] = 0, 7
    first, second = said(TOKENS), said(other)
    np.testing.assert_array_equal(first.pooled, second.pooled)
    for row, end in ((0, 4), (1, 2)):
        for kind in ("penultimate", "last"):
            ours, theirs = getattr(first, kind)[row], getattr(second, kind)[row]
            np.testing.assert_array_equal(ours[: end + 1], theirs[: end + 1])
            assert np.abs(ours[end + 1 :] - theirs[end + 1 :]).max() > 0.01


def test_pooled_is_the_first_end_projected():
    found = said(TOKENS)
    expected = found.last[[0, 1], [4, 2]] @ weights()["project"]["kernel"]
    np.testing.assert_allclose(found.pooled, expected, rtol=1e-5, atol=1e-5)


def test_an_id_above_that_of_the_end_does_not_end_a_text():
    longer = MODEL.clone(vocabulary=13)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), parameters(longer))
    tokens = np.array([[9, 12, 10, 0]], np.int32)
    found = longer.apply({"params": params}, tokens)
    np.testing.assert_allclose(found.pooled, found.last[:, 2] @ params["project"]["kernel"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "count"), [("clip-l", 123_060_480), ("clip-bigg", 694_659_840)])
def test_the_published_sizes_have_the_published_numbers_of_parameters(kind, count):
    model = CLIPText(**SIZES[kind])
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters(model))) == count
    assert model.width // model.num_heads == 64  # which the count does not show


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_heads": 5}, r"width = 12 is not a multiple of num_heads = 5"),
        ({"depth": 0}, r"depth"),
        ({"projection": 0}, r"projection"),
        ({"positions": 7}, r"^a text of 8 tokens is longer than the 7 positions of this network"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(MODEL.clone(**change).init, jax.random.key(0), TOKENS)
