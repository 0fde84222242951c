"""The last layer of a language model: the logits of tokens, by a matrix of its own or by the embedding (Press and Wolf
2017, arXiv:1608.05859). Logits are in float32, whatever the network computes in.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from genjax.nn.linear import with_axes

__all__ = ["Head", "embedding_init", "tied_logits"]

embedding_init = nn.initializers.normal(0.02)
"""Initialiser of tables of tokens, and of heads (GPT-2, section 2.3)."""


class Head(nn.Module):
    """The last linear layer: logits in float32, whatever the network computes in."""

    vocabulary: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        init = with_axes(embedding_init, ("embed", "vocab"))
        kernel = self.param("kernel", init, (hidden.shape[-1], self.vocabulary))
        return jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)


def tied_logits(hidden: Float[Array, "B T D"], embedding: Float[Array, "V D"]) -> Float[Array, "B T V"]:
    """Logits in float32 of hidden states, by the transposed embedding: a head without weights of its own."""
    return jnp.einsum("btd,vd->btv", hidden, embedding, preferred_element_type=jnp.float32)
