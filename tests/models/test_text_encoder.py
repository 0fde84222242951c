"""Laws of every text encoder of the room."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from genjax.config.kinds import kinds, lacking
from genjax.config.values import typed
from genjax.errors import InputError
from genjax.models.text_encoder import TextEncoder, padded

ENCODERS = kinds(TextEncoder)


def test_the_room_has_encoders_of_bytes_and_of_words():
    assert {"ByteEncoder", "WordEncoder"} <= set(ENCODERS)


@dataclass(frozen=True)
class Tokens:
    """It has ids for texts, and nothing that a network could be conditioned on."""

    max_length: int = 9

    def tokenize(self, text: str) -> np.ndarray:
        return padded([len(text)], self.max_length)


def test_what_only_knows_ids_is_no_text_encoder():
    with pytest.raises(InputError, match="text takes a TextEncoder, not a Tokens"):
        typed(Tokens(), TextEncoder, "text")
    assert lacking(Tokens, TextEncoder) == ["init_with_output", "apply"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODERS.values(), ids=ENCODERS)
def test_text_becomes_ids_and_ids_a_context_and_one_vector(kind):
    encoder = kind(max_length=9, width=8, pooled_width=6)
    tokens = np.stack([encoder.tokenize(text) for text in ("", "a cat")])
    assert tokens.shape == (2, 9) and tokens.dtype == np.int32
    with pytest.raises(InputError, match="at most 9"):
        encoder.tokenize("a b c d e f g h i j")
    (context, pooled), variables = jax.jit(encoder.init_with_output)(jax.random.key(0), jnp.asarray(tokens))
    assert context.shape == (2, 9, 8) and pooled.shape == (2, 6)
    alone, _ = encoder.apply(meta.unbox(variables), tokens[1:])
    np.testing.assert_allclose(alone[0], context[1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(context[0], context[1])


@pytest.mark.parametrize("size", ["max_length", "width", "pooled_width"])
@pytest.mark.parametrize("kind", ENCODERS.values(), ids=ENCODERS)
def test_sizes_that_are_none_are_refused(kind, size):
    with pytest.raises(InputError, match=f"{size} of {kind.__name__} is at least 1, not 0"):
        jax.eval_shape(kind(**{size: 0}).init, jax.random.key(0), jnp.zeros((1, 9), jnp.int32))
