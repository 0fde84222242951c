"""The keys and values of tokens that a decoder has read: an explicit value, given to the network and got back.

Its shapes never change, so it can be the state of a compiled loop. Each row has a length of its own. New tokens are
written from there on; those that do not fit are dropped. What lies beyond a length is never read, so that to forget
tokens (the padding of a short prompt, a refused draft) is to set the length back: `cache._replace(length=shorter)`.

To write one more token is to read all that is held, once, and so the arrangement is the one in which nothing has to be
copied first: each layer has arrays of its own, and the tokens of a head lie next to each other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.nn.attention import AttentionImplementation, attention

__all__ = ["KVCache", "LayerCache", "empty_cache"]


class LayerCache(NamedTuple):
    """Keys and values of one layer."""

    keys: Float[Array, "B K S H"]
    values: Float[Array, "B K S H"]

    def write(
        self, slots: Int[Array, "B T"], keys: Float[Array, "B T K H"], values: Float[Array, "B T K H"]
    ) -> "LayerCache":
        """With new tokens at these places of each row; where there is no such place, a token is dropped."""

        def written(whole, part):
            # The heads have indices too: XLA takes a write at a single index apart, and then copies the whole first.
            rows, heads = (jnp.arange(size) for size in whole.shape[:2])
            at = rows[:, None, None], heads[:, None], slots[:, None]
            part = jnp.swapaxes(part, 1, 2).astype(whole.dtype)
            return whole.at[at].set(part, mode="drop", unique_indices=True)

        return LayerCache(written(self.keys, keys), written(self.values, values))

    def attend(
        self,
        query: Float[Array, "B T N H"],
        slots: Int[Array, "B T"],
        *,
        implementation: AttentionImplementation = "auto",
    ) -> Float[Array, "B T N H"]:
        """softmax(q k^T / sqrt(H)) v of the tokens at `slots` over all places up to their own.

        A single query of each row is a product of a matrix and a vector: two plain products, whatever the
        implementation is. More of them are attention as everywhere.
        """
        batch, count, heads, width = query.shape
        key_heads, capacity = self.keys.shape[1:3]
        places = jnp.arange(capacity, dtype=slots.dtype)
        if count > 1:
            keys, values = (jnp.swapaxes(part.astype(query.dtype), 1, 2) for part in self)
            positions = slots, places[None]
            return attention(query, keys, values, is_causal=True, positions=positions, implementation=implementation)
        keys, values = (part.astype(query.dtype) for part in self)
        query = query.reshape(batch, key_heads, heads // key_heads, width)
        logits = jnp.einsum("bkgh,bksh->bkgs", query, keys, preferred_element_type=jnp.float32) * width**-0.5
        logits = jnp.where((places <= slots)[:, None, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
        out = jnp.einsum("bkgs,bksh->bkgh", weights, values, preferred_element_type=jnp.float32)
        return out.astype(query.dtype).reshape(batch, 1, heads, width)


class KVCache(NamedTuple):
    """Keys and values of all layers for B rows of at most S tokens."""

    layers: tuple[LayerCache, ...]
    length: Int[Array, " B"]
    """How many tokens of each row it holds."""

    @property
    def capacity(self) -> int:
        """The most tokens that a row can hold."""
        return self.layers[0].keys.shape[2]

    def slots(self, count: int) -> Int[Array, "B count"]:
        """Where the next `count` tokens of each row go."""
        return self.length[:, None] + jnp.arange(count, dtype=self.length.dtype)


def empty_cache(
    layers: int, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: DTypeLike = jnp.float32
) -> KVCache:
    """A cache that holds nothing yet."""
    shape = batch, kv_heads, capacity, head_dim
    made = tuple(LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(layers))
    return KVCache(made, jnp.zeros(batch, jnp.int32))
