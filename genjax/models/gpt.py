"""The transformer of GPT-2 (Radford et al. 2019) and of taming-transformers' second stage (Esser et al. 2021,
arXiv:2012.09841, section 3.2), which is minGPT.

    x  = embedding[token] + positions[t]
    x += o(attention(q(h), k(h), v(h))),     h = LayerNorm(x)       causal, or every token sees every other
    x += fc2(gelu(fc1(h))),                  h = LayerNorm(x)
    logits = head(LayerNorm(x))                                     the head may be the embedding itself

All linear layers have biases but the head; norms have an epsilon of 1e-5. minGPT's gelu is by the error function;
OpenAI's own GPT-2 takes `activation` gelu_tanh and a tied head. Fresh weights are normal with deviation 0.02, and
1 / sqrt(2 depth) of that where a layer ends in the residual stream (GPT-2, section 2.3). There is no dropout.

As in `Decoder` blocks are stacked and run by a scan, and one after the other with a cache (see reading.py).
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
from genjax.nn.activations import Activation, activation
from genjax.nn.attention import AttentionImplementation, attention
from genjax.nn.head import Head, embedding_init, tied_logits
from genjax.nn.island import lying_on
from genjax.nn.kv_cache import KVCache, LayerCache, empty_cache
from genjax.nn.linear import STACKED, Embedding, Linear, with_axes
from genjax.nn.mlp import MLP
from genjax.nn.norms import LayerNorm
from genjax.nn.remat import RematPolicy, rematerialise

__all__ = ["GPT", "GPTBlock"]

EPSILON = 1e-5
DEVIATION = 0.02


class GPT(nn.Module):
    """The logits of the token that follows each token; without causality, of the token at each place.

    `apply({"params": p}, tokens (B,T) int32)` returns (B,T,vocabulary) in float32. More arguments:

    - `positions` (B,T): where the default is not wanted (the index in the row, or in the cache). One beyond the table
      is read as the last.
    - `cache`: what was read before. Tokens are its next ones, and see all of it; returned is (logits, cache with them).

    Raises ValueError where sizes do not fit each other, where there are more tokens than positions, and where a network
    that is not causal gets a cache.
    """

    vocabulary: int = 1024
    """Number of token ids."""
    positions: int = 512
    """The most tokens of a row (taming's block_size)."""
    width: int = 256
    """Width of the residual stream."""
    depth: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Attention heads, which share the width."""
    mlp_width: int | None = None
    """Inner width of the MLP; None: four times the width."""
    activation: Activation = "gelu"
    """Inside the MLP."""
    causal: bool = True
    """Whether a token sees only itself and those before it; else all, as a masked transformer does."""
    tie_embeddings: bool = False
    """The head is the transposed embedding, and has no weights of its own."""
    remat: RematPolicy = field(default="none", metadata={"may_change": True})
    """What each block keeps for the backward pass: none (keep all), dots, attention, full (keep its inputs only)."""
    attention_implementation: AttentionImplementation = field(default="auto", metadata={"may_change": True})
    """Which attention kernel to use; auto: the fastest of this machine."""

    def setup(self):
        check_sizes(self, vocabulary=1, positions=1, width=1, depth=1, num_heads=1)
        if self.mlp_width is not None:
            check_sizes(self, mlp_width=1)
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} is not a multiple of num_heads = {self.num_heads}")
        self.embed = Embedding(self.vocabulary, self.width, embedding_init=embedding_init)
        table = self.positions, self.width
        self.position_embedding = self.param("position_embedding", with_axes(embedding_init, (None, "embed")), table)
        stack = nn.scan(
            rematerialise(GPTBlock, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            metadata_params=STACKED,
        )
        self.blocks = stack(**self._block())
        self.norm = LayerNorm(EPSILON)
        if not self.tie_embeddings:
            self.head = Head(self.vocabulary)

    def __call__(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None = None, cache: KVCache | None = None
    ) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], KVCache]:
        hidden, cache = self.hidden(tokens, positions, cache)
        logits = self.logits(hidden)
        return logits if cache is None else (logits, cache)

    def hidden(self, tokens, positions=None, cache=None) -> tuple[Array, KVCache | None]:
        """(what the head reads (B,T,D), the cache with these tokens or None); arguments as those of a call."""
        found = self.transform(self.embed(tokens), positions, cache)
        return (found, None) if cache is None else found

    def transform(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"] | None = None, cache: KVCache | None = None
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], KVCache]:
        """What the head reads, of tokens that are embedded already; with a cache (that, the cache with them).

        Positions are added here, and blocks and the last norm follow; arguments and errors as those of a call. A
        network of which nothing else is called has no embedding and no head.
        """
        count = x.shape[1]
        self._check(count, cache)
        if cache is not None and positions is None:
            positions = cache.slots(count)
        if positions is None:
            places = self.position_embedding[None, :count]
        else:
            places = jnp.take(self.position_embedding, positions, axis=0, mode="clip")
        x = x + places.astype(x.dtype)
        if cache is None:
            (x, _), _ = self.blocks((x, None), None)
            return self.norm(x)
        block = GPTBlock(**self._block(), parent=None)
        x, cache = read_blocks(block, self.variables["params"]["blocks"], x, cache, cache.slots(count))
        return self.norm(x), cache

    @nn.nowrap
    def _check(self, count: int, cache: KVCache | None) -> None:
        held = count if cache is None else cache.capacity
        if held > self.positions:
            raise ValueError(f"a row of {held} tokens is longer than the {self.positions} positions of this network")
        if cache is not None and not self.causal:
            raise ValueError("a network that is not causal takes no cache: later tokens change what earlier ones are")
        if count > held:
            raise ValueError(f"{count} tokens do not fit into a cache of {held}")

    @nn.nowrap
    def _block(self) -> dict[str, Any]:
        """The fields of every block."""
        return dict(
            num_heads=self.num_heads,
            mlp_width=4 * self.width if self.mlp_width is None else self.mlp_width,
            activation=self.activation,
            causal=self.causal,
            residual_layers=2 * self.depth,
            attention_implementation=self.attention_implementation,
        )

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits in float32 of hidden states."""
        return tied_logits(hidden, self.embed.embedding) if self.tie_embeddings else self.head(hidden)

    @nn.nowrap
    def empty_cache(self, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> KVCache:
        """A cache for rows of at most `capacity` tokens; keys and values are stored in `dtype`."""
        cache = empty_cache(self.depth, batch, capacity, self.num_heads, self.width // self.num_heads, dtype)
        self._check(0, cache)
        return cache

    @nn.nowrap
    def reader(self, params: PyTree[Array]) -> Partial:
        """`network(tokens (B,T), cache=cache) -> (logits (B,T,V), cache)`, a pytree; the blocks are taken apart once.

        It holds a second copy of their weights.
        """
        return reader(self, params)


class GPTBlock(nn.Module):
    """One block over the carry (x (B,T,D), its cache or None); see the module's equations.

    `slots` (B,T) are the places of a cache that the tokens go to; None where there is none.
    """

    num_heads: int
    mlp_width: int
    activation: Activation
    causal: bool
    residual_layers: int
    """How many layers of the network add to the residual stream: their sum keeps its size (GPT-2, section 2.3)."""
    attention_implementation: AttentionImplementation = "auto"

    @nn.compact
    def __call__(self, carry: tuple[Array, LayerCache | None], slots):
        x, cache = carry
        x = lying_on(x, ("batch", None, None))
        init = nn.initializers.normal(DEVIATION)
        out_init = nn.initializers.normal(DEVIATION * self.residual_layers**-0.5)
        width, implementation = x.shape[-1], self.attention_implementation

        h = LayerNorm(EPSILON, name="attention_norm")(x)
        qkv = (Linear(width, ("embed", "heads"), kernel_init=init, name=name)(h) for name in ("q", "k", "v"))
        query, key, value = (part.reshape(*x.shape[:2], self.num_heads, -1) for part in qkv)
        if cache is None:
            attended = attention(query, key, value, is_causal=self.causal, implementation=implementation)
        else:
            cache = cache.write(slots, key, value)
            attended = cache.attend(query, slots, implementation=implementation)
        attended = attended.reshape(x.shape)
        x = x + Linear(width, ("heads", "embed"), kernel_init=out_init, name="o")(attended)

        h = LayerNorm(EPSILON, name="mlp_norm")(x)
        x = x + MLP(self.mlp_width, width, activation(self.activation), init, out_init, name="mlp")(h)
        return (x, cache), None
