"""Laws of the byte encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from hypothesis import given
from hypothesis import strategies as st

from genjax.errors import InputError
from genjax.models.byte_encoder import ByteEncoder

# The network takes longer to compile than to run.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)

ENCODER = ByteEncoder(max_length=12, width=8, pooled_width=6, depth=2, num_heads=2)

short_texts = st.text(max_size=12).filter(lambda text: len(text.encode()) <= 12)


@given(short_texts)
def test_utf8_comes_back_from_the_tokens(text):
    ids = ENCODER.tokenize(text)
    assert ids.shape == (12,) and ids.dtype == np.int32
    assert bytes((ids[ids > 0] - 1).tolist()).decode() == text


@given(short_texts)
def test_padding_is_zero_and_comes_last(text):
    length = len(text.encode())
    ids = ENCODER.tokenize(text)
    assert (ids[:length] > 0).all() and (ids[length:] == 0).all()


@given(st.binary(max_size=12))
def test_every_token_is_in_the_vocabulary(data):
    ids = ENCODER.tokenize(data.decode(errors="ignore"))
    assert ids.min() >= 0 and ids.max() < 257


@pytest.mark.parametrize(("text", "count"), [("thirteen byte", 13), ("ééééééé", 14)])
def test_a_text_that_is_too_long_is_refused_with_its_number_of_bytes(text, count):
    with pytest.raises(InputError, match=f"'{text}' has {count} bytes, and this text encoder takes at most 12"):
        ENCODER.tokenize(text)


@pytest.fixture(scope="module")
def encode():
    """Texts to (context, pooled), with fresh weights."""
    params = jit(lambda *given: meta.unbox(ENCODER.init(*given)))(jax.random.key(0), jnp.zeros((1, 12), jnp.int32))
    apply = jit(ENCODER.apply)

    def encode(*texts, dtype=jnp.float32):
        tokens = np.stack([ENCODER.tokenize(text) for text in texts])
        return apply(jax.tree.map(lambda p: p.astype(dtype), params), tokens)

    return encode


TEXTS = ("", "a seven", "a eight", "neves a", "a seven ")


def test_context_and_pooled_have_the_widths_asked_for(encode):
    context, pooled = encode(*TEXTS)
    assert context.shape == (5, 12, 8) and pooled.shape == (5, 6)


def test_different_texts_have_different_features_the_same_letters_in_another_order_too(encode):
    for features in encode(*TEXTS):
        flat = np.asarray(features).reshape(5, -1)
        assert np.linalg.norm(flat[:, None] - flat[None], axis=-1)[~np.eye(5, dtype=bool)].min() > 1e-3


def test_every_letter_is_seen_at_every_position(encode):
    context = np.asarray(encode("a seven", "b seven", "a seven", "a seven", "a seven")[0])
    assert (np.abs(context[0] - context[1]).max(axis=-1) > 0).all()


def test_without_blocks_a_feature_sees_its_own_byte_only():
    shallow = ByteEncoder(max_length=12, width=8, depth=0)
    tokens = np.stack([shallow.tokenize(text) for text in ("a seven", "a eeven")])
    (first, second), _ = jit(shallow.init_with_output)(jax.random.key(0), tokens)[0]
    differs = np.abs(np.asarray(first - second)).max(axis=-1) > 0
    np.testing.assert_array_equal(differs, np.arange(12) == 2)


def test_a_text_does_not_depend_on_its_batch(encode):
    for together, reversed_batch in zip(encode(*TEXTS), encode(*TEXTS[::-1]), strict=True):
        np.testing.assert_allclose(together, reversed_batch[::-1], atol=1e-5)


def test_bfloat16_weights_give_bfloat16_features_near_those_of_float32(encode):
    for full, half in zip(encode(*TEXTS), encode(*TEXTS, dtype=jnp.bfloat16), strict=True):
        assert half.dtype == jnp.bfloat16
        assert np.linalg.norm(np.float32(half) - full) < 0.03 * np.linalg.norm(full)
