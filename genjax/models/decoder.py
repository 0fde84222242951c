"""The decoder of language models, in the form of Llama (Touvron et al. 2023, arXiv:2302.13971, section 2.2).

    x  = embedding[token]
    x += o(attention(rotate(q(h)), rotate(k(h)), v(h))),   h = RMSNorm(x)       causal; K key heads serve N query heads
    x += down(silu(gate(h)) * up(h)),                      h = RMSNorm(x)
    logits = head(RMSNorm(x))                                                   the head may be the embedding itself

Queries are grouped (Ainslie et al. 2023, arXiv:2305.13245), rotary pairs lie in halves. The same code reads packed
documents, a whole prompt into a cache, and one more token of each row.

Blocks are stacked and run by a scan, so that compile time does not grow with depth. With a cache they run one after the
other: to write a token is to read every weight and all of the cache once, and a scan would copy each layer's part out
of the stack first. `reader(params)` takes the stack apart, and is what decoding calls.
"""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from genjax.models.reading import read_blocks, reader
from genjax.models.sizes import check_sizes
from genjax.nn.attention import AttentionImplementation, attention
from genjax.nn.gated_mlp import GatedMLP
from genjax.nn.head import Head, embedding_init, tied_logits
from genjax.nn.island import lying_on
from genjax.nn.kv_cache import KVCache, LayerCache, empty_cache
from genjax.nn.linear import STACKED, Embedding, Linear
from genjax.nn.norms import RMSNorm
from genjax.nn.remat import RematPolicy, rematerialise
from genjax.nn.rotary import angles, positions_in_segments, rotary

__all__ = ["Decoder", "DecoderBlock", "linear_init"]

linear_init = nn.initializers.lecun_normal()


class Decoder(nn.Module):
    """The logits of the token that follows each token.

    `apply({"params": p}, tokens (B,T) int32)` returns (B,T,vocabulary) in float32. More arguments:

    - `segments` (B,T): which document of a packed row each token is of, negative for padding. Tokens see their own
      document only, and positions start anew in each.
    - `cache`: what was read before. Tokens are its next ones, and see all of it; returned is (logits, cache with them).
    - `positions` (B,T): where the default is not wanted (the index in the document, or in the cache).

    Raises ValueError where sizes do not fit each other, and where both segments and a cache are given.
    """

    vocabulary: int = 257
    """Number of token ids."""
    width: int = 256
    """Width of the residual stream."""
    depth: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 4
    """Key and value heads, each shared by num_heads / num_kv_heads query heads."""
    head_dim: int = 64
    """Width of one head, even."""
    mlp_width: int = 688
    """Inner width of the gated MLP; Llama has about 8/3 of the width."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths, the longest of which is almost 2 pi theta tokens."""
    norm_epsilon: float = 1e-6
    """Added to mean squares by every norm."""
    tie_embeddings: bool = False
    """The head is the transposed embedding, and has no weights of its own."""
    remat: RematPolicy = field(default="none", metadata={"may_change": True})
    """What each block keeps for the backward pass: none (keep all), dots, attention, full (keep its inputs only)."""
    attention_implementation: AttentionImplementation = field(default="auto", metadata={"may_change": True})
    """Which attention kernel to use; auto: the fastest of this machine."""

    def setup(self):
        check_sizes(self, vocabulary=1, width=1, depth=1, num_heads=1, num_kv_heads=1, head_dim=1, mlp_width=1)
        check_sizes(self, norm_epsilon=0, rope_theta=1)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads = {self.num_heads} is not a multiple of num_kv_heads = {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} is odd, and rotary positions turn pairs")
        self.embed = Embedding(self.vocabulary, self.width, embedding_init=embedding_init)
        stack = nn.scan(
            rematerialise(DecoderBlock, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            metadata_params=STACKED,
        )
        self.blocks = stack(**self._block())
        self.norm = RMSNorm(self.norm_epsilon)
        if not self.tie_embeddings:
            self.head = Head(self.vocabulary)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], KVCache]:
        hidden, cache = self.hidden(tokens, positions, segments, cache)
        logits = self.logits(hidden)
        return logits if cache is None else (logits, cache)

    def hidden(self, tokens, positions=None, segments=None, cache=None) -> tuple[Array, KVCache | None]:
        """(what the head reads (B,T,D), the cache with these tokens or None); arguments as those of a call."""
        count = tokens.shape[1]
        index, seen = jnp.arange(count, dtype=jnp.int32)[None], {}
        if cache is not None:
            if segments is not None:
                raise ValueError("a row of a cache is one document: give segments or a cache, not both")
            if count > cache.capacity:
                raise ValueError(f"{count} tokens do not fit into a cache of {cache.capacity}")
            index = cache.slots(count)
        elif segments is not None:
            index = positions_in_segments(segments)
            seen = {"segment_ids": segments}
        tables = angles(index if positions is None else positions, self.head_dim, theta=self.rope_theta)
        x = self.embed(tokens)
        if cache is None:
            (x, _), _ = self.blocks((x, None), tables, seen)
        else:
            x, cache = self._read(x, tables, cache)
        return self.norm(x), cache

    def _read(self, x: Float[Array, "B T D"], tables, cache: KVCache) -> tuple[Float[Array, "B T D"], KVCache]:
        """All blocks, one after the other, and the cache with these tokens."""
        slots = {"slots": cache.slots(x.shape[1])}
        block = DecoderBlock(**self._block(), parent=None)
        return read_blocks(block, self.variables["params"]["blocks"], x, cache, tables, slots)

    @nn.nowrap
    def _block(self) -> dict[str, Any]:
        """The fields of every block."""
        return dict(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width,
            norm_epsilon=self.norm_epsilon,
            residual_layers=2 * self.depth,
            attention_implementation=self.attention_implementation,
        )

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits in float32 of hidden states."""
        if self.tie_embeddings:
            return tied_logits(hidden, self.embed.embedding)
        return self.head(hidden)

    @nn.nowrap
    def empty_cache(self, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> KVCache:
        """A cache for rows of at most `capacity` tokens; keys and values are stored in `dtype`."""
        return empty_cache(self.depth, batch, capacity, self.num_kv_heads, self.head_dim, dtype)

    @nn.nowrap
    def reader(self, params: PyTree[Array]) -> Partial:
        """`network(tokens (B,T), cache=cache) -> (logits (B,T,V), cache)`, a pytree; the blocks are taken apart once.

        It holds a second copy of their weights.
        """
        return reader(self, params)


class DecoderBlock(nn.Module):
    """One block over the carry (x (B,T,D), its cache or None); see the module's equations.

    `seen` are the options of attention that say, beside causality, what each token sees: segments, or slots of a cache.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    norm_epsilon: float
    residual_layers: int
    """How many layers of the network add to the residual stream: their sum keeps its size (GPT-2, section 2.3)."""
    attention_implementation: AttentionImplementation = "auto"

    @nn.compact
    def __call__(self, carry: tuple[Array, LayerCache | None], tables, seen):
        x, cache = carry
        x = lying_on(x, ("batch", None, None))
        out_init = nn.initializers.variance_scaling(1 / self.residual_layers, "fan_in", "truncated_normal")

        h = RMSNorm(self.norm_epsilon, name="attention_norm")(x)
        query = self._heads("q", self.num_heads, h)
        key, value = (self._heads(name, self.num_kv_heads, h) for name in ("k", "v"))
        query, key = rotary(query, key, *tables, layout="halves")
        implementation = self.attention_implementation
        if cache is None:
            attended = attention(query, key, value, is_causal=True, implementation=implementation, **seen)
        else:
            cache = cache.write(seen["slots"], key, value)
            attended = cache.attend(query, seen["slots"], implementation=implementation)
        attended = attended.reshape(*x.shape[:2], -1)
        x = x + Linear(x.shape[-1], ("heads", "embed"), use_bias=False, kernel_init=out_init, name="o")(attended)

        h = RMSNorm(self.norm_epsilon, name="mlp_norm")(x)
        x = x + GatedMLP(self.mlp_width, x.shape[-1], down_init=out_init, name="mlp")(h)
        return (x, cache), None

    def _heads(self, name: str, heads: int, x: Float[Array, "B T D"]) -> Float[Array, "B T heads H"]:
        flat = Linear(heads * self.head_dim, ("embed", "heads"), use_bias=False, kernel_init=linear_init, name=name)(x)
        return flat.reshape(*x.shape[:2], heads, self.head_dim)
