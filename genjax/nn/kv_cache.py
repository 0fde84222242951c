"""The keys and values of tokens that a decoder has read: an explicit value, given to the network and got back.

Its shapes never change, so it can be the state of a compiled loop. Each row has a length of its own. New tokens are
written from there on; those that do not fit are dropped. What lies beyond a length is never read, so that to forget
tokens (the padding of a short prompt, a refused draft) is to set the length back: `cache._replace(length=shorter)`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

__all__ = ["KVCache", "empty_cache"]


class KVCache(NamedTuple):
    """Keys and values of L layers for B rows of at most S tokens."""

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]
    length: Int[Array, " B"]
    """How many tokens of each row it holds."""

    @property
    def capacity(self) -> int:
        """The most tokens that a row can hold."""
        return self.keys.shape[2]

    def slots(self, count: int) -> Int[Array, "B count"]:
        """Where the next `count` tokens of each row go."""
        return self.length[:, None] + jnp.arange(count, dtype=self.length.dtype)

    def write(
        self, layer: Int[Array, ""] | int, keys: Float[Array, "B T K H"], values: Float[Array, "B T K H"]
    ) -> "KVCache":
        """With new tokens in one layer; the length stays, for the other layers have to write at the same place."""
        at = layer, jnp.arange(len(keys))[:, None], self.slots(keys.shape[1])
        return self._replace(
            keys=self.keys.at[at].set(keys.astype(self.keys.dtype), mode="drop", unique_indices=True),
            values=self.values.at[at].set(values.astype(self.values.dtype), mode="drop", unique_indices=True),
        )

    def read(self, layer: Int[Array, ""] | int) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """(keys, values) of one layer, whole."""
        return self.keys[layer], self.values[layer]


def empty_cache(
    layers: int, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: DTypeLike = jnp.float32
) -> KVCache:
    """A cache that holds nothing yet."""
    shape = (layers, batch, capacity, kv_heads, head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))
