"""Laws of the word encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta
from hypothesis import given
from hypothesis import strategies as st

from genjax.data.emoji import _pictures
from genjax.errors import InputError
from genjax.models.word_encoder import WordEncoder, word_id, words

# The network takes longer to compile than to run.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)

ENCODER = WordEncoder(max_length=6, vocabulary=64, width=8, pooled_width=6, depth=2, num_heads=2)

word = st.text("abcdefgh-", min_size=1, max_size=6).map(lambda text: f"x{text}x")
short_texts = st.lists(word, max_size=6)


@given(short_texts)
def test_a_token_is_the_id_of_its_word_and_padding_is_zero_and_comes_last(several):
    ids = ENCODER.tokenize(" ".join(several))
    assert ids.shape == (6,) and ids.dtype == np.int32
    assert ids[: len(several)].tolist() == [word_id(each) for each in several]
    assert (ids[: len(several)] > 0).all() and (ids[len(several) :] == 0).all()


@given(short_texts)
def test_case_spaces_and_punctuation_at_the_ends_of_words_do_not_matter(several):
    plain, decorated = " ".join(several), "  ".join(f"“{each.upper()}!”," for each in several)
    np.testing.assert_array_equal(ENCODER.tokenize(plain), ENCODER.tokenize(decorated))


def test_ids_are_the_published_crc_and_never_that_of_padding():
    assert word_id("123456789") == 1 + 0xCBF43926 % (2**31 - 1)  # the check value of CRC-32
    assert words(" & -- ") == []
    assert words("thumbs up, medium-dark skin tone") == ["thumbs", "up", "medium-dark", "skin", "tone"]


@pytest.mark.parametrize("text", ["one two three four five six seven", "a b c d e, f g"])
def test_a_text_that_is_too_long_is_refused_with_its_number_of_words(text):
    with pytest.raises(InputError, match=f"'{text}' has 7 words, and this text encoder takes at most 6"):
        ENCODER.tokenize(text)


@pytest.fixture(scope="module")
def emoji_captions(tmp_path_factory):
    """Every caption of the emoji, whatever is drawn of them: the list of names alone is needed."""
    package = pytest.importorskip("emoji")
    sequences = [key for key, known in package.EMOJI_DATA.items() if known["status"] == 2]
    return [caption for p in _pictures(sequences, range(len(sequences))) for caption in p.captions]


def test_no_two_words_of_the_emoji_share_both_rows_though_many_share_one(emoji_captions):
    vocabulary = WordEncoder().vocabulary
    ids = np.array([word_id(each) for each in {each for caption in emoji_captions for each in words(caption)}])
    low, high = ids % vocabulary, ids // vocabulary % vocabulary
    assert 1900 < len(ids) < 2500
    assert 300 < len(ids) - len(set(low)) < 600  # one table alone would take as many words for one another
    assert len(set(zip(low, high, strict=True))) == len(ids)


def test_every_caption_of_the_emoji_fits(emoji_captions):
    lengths = {len(words(caption)) for caption in emoji_captions}
    assert max(lengths) == WordEncoder().max_length == 12 and min(lengths) >= 1


@pytest.fixture(scope="module")
def encode():
    """Texts to (context, pooled), with fresh weights."""
    params = meta.unbox(jit(ENCODER.init)(jax.random.key(0), jnp.zeros((1, 6), jnp.int32)))
    apply = jit(ENCODER.apply)

    def encode(*texts, dtype=jnp.float32):
        tokens = np.stack([ENCODER.tokenize(text) for text in texts])
        return apply(jax.tree.map(lambda p: p.astype(dtype), params), tokens)

    return encode


TEXTS = ("", "red circle", "red square", "circle red", "red circle circle")


def test_context_and_pooled_have_the_widths_asked_for(encode):
    context, pooled = encode(*TEXTS)
    assert context.shape == (5, 6, 8) and pooled.shape == (5, 6)


def test_different_texts_have_different_features_the_same_words_in_another_order_too(encode):
    for features in encode(*TEXTS):
        flat = np.asarray(features).reshape(5, -1)
        assert np.linalg.norm(flat[:, None] - flat[None], axis=-1)[~np.eye(5, dtype=bool)].min() > 1e-3


def test_every_word_is_seen_at_every_position(encode):
    context = np.asarray(encode("red circle", "blue circle", "", "", "")[0])
    assert (np.abs(context[0] - context[1]).max(axis=-1) > 0).all()


def test_words_that_share_one_row_are_told_apart_by_the_other():
    shallow = WordEncoder(max_length=1, vocabulary=64, width=8, depth=0)
    tokens = np.array([[5], [5 + 64], [6 + 64]], np.int32)
    (context, _), _ = jit(shallow.init_with_output)(jax.random.key(0), tokens)
    flat = np.asarray(context)[:, 0]
    assert np.linalg.norm(flat[:, None] - flat[None], axis=-1)[~np.eye(3, dtype=bool)].min() > 1e-3


def test_a_text_does_not_depend_on_its_batch(encode):
    for together, reversed_batch in zip(encode(*TEXTS), encode(*TEXTS[::-1]), strict=True):
        np.testing.assert_allclose(together, reversed_batch[::-1], atol=1e-5)


def test_bfloat16_weights_give_bfloat16_features_near_those_of_float32(encode):
    for full, half in zip(encode(*TEXTS), encode(*TEXTS, dtype=jnp.bfloat16), strict=True):
        assert half.dtype == jnp.bfloat16
        assert np.linalg.norm(np.float32(half) - full) < 0.03 * np.linalg.norm(full)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(num_heads=3), "a WordEncoder of width 8 cannot have 3 heads"),
        (dict(vocabulary=0), "vocabulary of WordEncoder is at least 1, not 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        ENCODER.clone(**wrong).init(jax.random.key(0), jnp.zeros((1, 6), jnp.int32))
