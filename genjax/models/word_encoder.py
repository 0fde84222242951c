"""A small text encoder over whole words, trained jointly with the network it conditions.

It has the interface of `ByteEncoder` and its transformer; only what a token is differs. A caption of a few words is a
few tokens, each with a meaning, where bytes must first be read into words: for captions from a small vocabulary, such
as names of things and their colours, that is most of what a text encoder has to learn.

There is no list of words: the id of a word is its CRC-32, a 31-bit number, and id 0 is padding. Each word is the sum of
two rows, one in each of two tables (hash embeddings, Svenstrup et al. 2017, arXiv:1709.03933), at id mod V and
(id div V) mod V. Two words that share a row in one table differ in the other: of the 2,053 words in the captions of
emoji no two have the same pair of rows, although one table alone would take 458 of them for another.
"""

import string
import zlib

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from genjax.errors import InputError
from genjax.models.byte_encoder import EncoderBlock
from genjax.models.sizes import check_sizes
from genjax.models.text_encoder import padded
from genjax.nn.linear import Embedding, Linear, with_axes
from genjax.nn.mlp import dense_init
from genjax.nn.norms import layer_norm

__all__ = ["WordEncoder", "word_id", "words"]

PUNCTUATION = string.punctuation + "‘’“”«»…–—¡¿"
IDS = 2**31 - 1


class WordEncoder(nn.Module):
    """A pre-norm transformer encoder over at most `max_length` words."""

    max_length: int = 12
    """Longest text, in words; shorter ones are padded to it."""
    vocabulary: int = 4096
    """Rows V of each of the two tables; they tell V^2 words apart."""
    width: int = 64
    """Width of the context features."""
    pooled_width: int = 64
    """Width of the pooled vector."""
    depth: int = 1
    """Number of transformer blocks."""
    num_heads: int = 2
    """Attention heads."""

    @nn.nowrap
    def tokenize(self, text: str) -> np.ndarray:
        """Token ids (max_length,) int32. Raises InputError when the text is longer than the encoder takes."""
        ids = [word_id(word) for word in words(text)]
        if len(ids) > self.max_length:
            raise InputError(
                f"the prompt {text!r} has {len(ids)} words, and this text encoder takes at most {self.max_length}"
            )
        return padded(ids, self.max_length)

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> tuple[Float[Array, "B T width"], Float[Array, "B pooled_width"]]:
        check_sizes(self, max_length=1, vocabulary=1, width=1, pooled_width=1, depth=0, num_heads=1)
        if self.width % self.num_heads:
            raise ValueError(f"a WordEncoder of width {self.width} cannot have {self.num_heads} heads")
        normal = nn.initializers.normal(0.02)
        first = Embedding(self.vocabulary, self.width, embedding_init=normal, name="embed_low")
        second = Embedding(self.vocabulary, self.width, embedding_init=normal, name="embed_high")
        x = first(tokens % self.vocabulary) + second(tokens // self.vocabulary % self.vocabulary)
        x = x + self.param("positions", with_axes(normal, (None, "embed")), (self.max_length, self.width))
        for i in range(self.depth):
            x = EncoderBlock(self.num_heads, name=f"block_{i}")(x)
        x = layer_norm(x)
        return x, Linear(self.pooled_width, ("embed", None), kernel_init=dense_init, name="pool")(jnp.mean(x, axis=1))


def words(text: str) -> list[str]:
    """The words of a text: in lower case, parted at white space, without punctuation at their ends."""
    stripped = (part.strip(PUNCTUATION) for part in text.lower().split())
    return [word for word in stripped if word]


def word_id(word: str) -> int:
    """The id of a word, from 1 to 2^31 - 1; the same in every process."""
    return 1 + zlib.crc32(word.encode()) % IDS
