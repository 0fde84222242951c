"""Laws of what Stable Diffusion 3 reads of a prompt; that it is diffusers' is in tests/parity/test_sd3_prompts.py."""

import functools

import jax
import numpy as np
import pytest
from flax.core import meta

from genjax.models.clip_text import CLIPText
from genjax.models.sd3_text import SD3Text
from genjax.models.t5_encoder import T5Encoder

CLIP = dict(vocabulary=11, positions=6, num_heads=2, end=10)
MODEL = SD3Text(
    clip_l=CLIPText(**CLIP, width=4, depth=2),
    clip_g=CLIPText(**CLIP, width=6, depth=3, projection=5, activation="gelu"),
    t5=T5Encoder(vocabulary=13, width=16, depth=1, num_heads=2, head_dim=3, mlp_width=8, buckets=8),
)
NAMES = ("clip_l", "clip_g", "t5")
TOKENS = (
    np.array([[9, 1, 2, 10, 10, 10], [9, 10, 10, 10, 10, 10]], np.int32),
    np.array([[9, 1, 2, 10, 0, 0], [9, 10, 0, 0, 0, 0]], np.int32),
    np.array([[3, 4, 1, 0, 0], [1, 0, 0, 0, 0]], np.int32),
)


@functools.cache
def weights():
    abstract = meta.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), *TOKENS))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), abstract)


@functools.cache
def said(left_out=()):
    params = {name: leaf for name, leaf in weights().items() if name not in left_out}
    return jax.tree.map(np.asarray, jax.jit(MODEL.clone(left_out=left_out).apply)({"params": params}, *TOKENS))


def test_each_encoder_has_its_place():
    context, pooled = said()
    assert context.shape == (2, 6 + 5, 16) and pooled.shape == (2, 4 + 5)
    clip_l, clip_g, t5 = (
        jax.jit(getattr(MODEL, name).apply)({"params": weights()[name]}, tokens)
        for name, tokens in zip(NAMES, TOKENS, strict=True)
    )
    for part, expected in (
        (context[:, :6, :4], clip_l.penultimate),
        (context[:, :6, 4:10], clip_g.penultimate),
        (context[:, :6, 10:], np.zeros((2, 6, 6))),
        (context[:, 6:], t5),
    ):
        np.testing.assert_allclose(part, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(pooled, np.concatenate([clip_l.pooled, clip_g.pooled], axis=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("left_out", [("clip_l",), ("clip_g",), ("t5",), ("clip_l", "t5"), NAMES], ids=" and ".join)
def test_where_an_encoder_is_left_out_there_are_zeros_and_nothing_else_changes(left_out):
    context, pooled = map(np.copy, said())
    if "clip_l" in left_out:
        context[:, :6, :4], pooled[:, :4] = 0, 0
    if "clip_g" in left_out:
        context[:, :6, 4:10], pooled[:, 4:] = 0, 0
    if "t5" in left_out:
        context[:, 6:] = 0
    for ours, expected in zip(said(left_out), (context, pooled), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_what_is_no_encoder_cannot_be_left_out():
    with pytest.raises(ValueError, match=r"left_out names t6; there are clip_l, clip_g and t5"):
        jax.eval_shape(MODEL.clone(left_out=("t5", "t6")).init, jax.random.key(0), *TOKENS)


def test_clips_that_are_wider_than_t5_are_refused():
    wide = MODEL.clone(clip_l=CLIPText(**CLIP, width=12))
    with pytest.raises(ValueError, match=r"CLIPs of width 18 do not fit into a context of width 16"):
        jax.eval_shape(wide.init, jax.random.key(0), *TOKENS)


def test_the_default_is_what_the_released_models_read():
    tokens = [jax.ShapeDtypeStruct((1, length), np.int32) for length in (77, 77, 256)]
    context, pooled = jax.eval_shape(SD3Text().init_with_output, jax.random.key(0), *tokens)[0]
    assert context.shape == (1, 333, 4096) and pooled.shape == (1, 2048)
