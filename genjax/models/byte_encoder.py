"""A small text encoder over bytes, trained jointly with the network it conditions.

It has the interface that CLIP and T5 have in Stable Diffusion 3: token ids in, a context of token features and one
pooled vector out. Text is UTF-8; id 0 is padding, byte b is id b + 1. As in SD3, padding is read like any other token.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from genjax.errors import InputError
from genjax.models.sizes import check_sizes
from genjax.models.text_encoder import padded
from genjax.nn.attention import attention
from genjax.nn.island import lying_on
from genjax.nn.linear import Embedding, Linear, with_axes
from genjax.nn.mlp import MLP, dense_init
from genjax.nn.norms import layer_norm

__all__ = ["ByteEncoder", "EncoderBlock"]


class ByteEncoder(nn.Module):
    """A pre-norm transformer encoder over at most `max_length` bytes."""

    max_length: int = 32
    """Longest text, in UTF-8 bytes; shorter ones are padded to it."""
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
        ids = np.frombuffer(text.encode(), np.uint8)
        if len(ids) > self.max_length:
            raise InputError(
                f"the prompt {text!r} has {len(ids)} bytes, and this text encoder takes at most {self.max_length}"
            )
        return padded(ids + np.int32(1), self.max_length)

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> tuple[Float[Array, "B T width"], Float[Array, "B pooled_width"]]:
        check_sizes(self, max_length=1, width=1, pooled_width=1, depth=0, num_heads=1)
        if self.width % self.num_heads:
            raise ValueError(f"a ByteEncoder of width {self.width} cannot have {self.num_heads} heads")
        normal = nn.initializers.normal(0.02)
        x = Embedding(257, self.width, embedding_init=normal, name="embed")(tokens)
        x = x + self.param("positions", with_axes(normal, (None, "embed")), (self.max_length, self.width))
        x = lying_on(x, ("batch", None, None))
        for i in range(self.depth):
            x = EncoderBlock(self.num_heads, name=f"block_{i}")(x)
        x = layer_norm(x)
        return x, Linear(self.pooled_width, ("embed", None), kernel_init=dense_init, name="pool")(jnp.mean(x, axis=1))


class EncoderBlock(nn.Module):
    """x += attention(norm(x)); x += MLP(norm(x))."""

    num_heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        width = x.shape[-1]
        qkv = Linear(3 * width, ("embed", "heads"), kernel_init=dense_init, name="qkv")(layer_norm(x))
        heads = (part.reshape(*x.shape[:2], self.num_heads, -1) for part in jnp.split(qkv, 3, axis=-1))
        x = x + Linear(width, ("heads", "embed"), kernel_init=dense_init, name="proj")(
            attention(*heads).reshape(x.shape)
        )
        return x + MLP(2 * width, width, name="mlp")(layer_norm(x))
