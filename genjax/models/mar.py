"""The network of masked autoregressive models: vectors are drawn one group after the other, each vector by denoising
(Li et al. 2024, arXiv:2406.11838, sections 3.2 and 3.4).

    z_i = transformer(prefix, vectors that are known, a learnt vector where none is)_i      every place sees every place
    head(x_t, t, z_i)                                                         what denoises the vector of place i

    head:  c = embedding(t) + Linear(z)
           h = Linear(x_t);   h += gate * MLP(LayerNorm(h) (1 + scale) + shift)  a few times,  (...) = Linear(SiLU(c))
           Linear(LayerNorm(h) (1 + scale) + shift)

What is smaller here than in the paper's code: one transformer sees all places, as in MaskGIT, where theirs is a masked
autoencoder whose first half does not see those that are masked, with 64 tokens of the class, dropout, and positions
once more before the head; and their head learns a variance too, and has weights in the norms of its blocks. Fresh heads
say 0.
"""

from dataclasses import field

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from genjax.models.gpt import DEVIATION, GPT
from genjax.models.sizes import check_sizes
from genjax.nn.attention import AttentionImplementation
from genjax.nn.embeddings import timestep_embedding
from genjax.nn.island import lying_on
from genjax.nn.linear import Embedding, Linear, with_axes
from genjax.nn.mlp import MLP, dense_init
from genjax.nn.modulation import AdaLN
from genjax.nn.norms import layer_norm
from genjax.nn.remat import RematPolicy

__all__ = ["MAR", "DenoisingHead"]


class MAR(nn.Module):
    """What a head says of one noised vector of each place, of the places that are known and a prefix.

    `apply({"params": p}, prefix (B,C), vectors (B,N,D), hidden (B,N), x_t (B,N,D), t (B,N))` returns (B,N,D) in
    float32; of `vectors`, those that are hidden are never read. Samplers call its halves, `read` and `denoise`.
    Raises ValueError where sizes do not fit each other, and where there are more tokens than positions.
    """

    vector_width: int = 16
    """Numbers D of a vector."""
    vocabulary: int = 1001
    """Ids of the prefix."""
    positions: int = 257
    """The most tokens of a row: those of the prefix, and the places."""
    width: int = 768
    """Width of the transformer."""
    depth: int = 24
    """Its blocks."""
    num_heads: int = 12
    """Its attention heads, which share the width."""
    head_width: int = 1024
    """Width of the head that denoises."""
    head_depth: int = 6
    """Its blocks."""
    remat: RematPolicy = field(default="none", metadata={"may_change": True})
    """What each block of the transformer keeps for the backward pass: none (keep all), dots, attention, full."""
    attention_implementation: AttentionImplementation = field(default="auto", metadata={"may_change": True})
    """Which attention kernel to use; auto: the fastest of this machine."""

    def setup(self):
        check_sizes(self, vector_width=1, vocabulary=1, positions=1, width=1, head_width=1, head_depth=1)
        small = nn.initializers.normal(DEVIATION)
        self.prefix_embed = Embedding(self.vocabulary, self.width, embedding_init=small)
        self.vector_embed = Linear(self.width, (None, "embed"), kernel_init=dense_init)
        self.mask = self.param("mask", with_axes(small, ("embed",)), (self.width,))
        self.transformer = GPT(
            positions=self.positions,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            causal=False,
            remat=self.remat,
            attention_implementation=self.attention_implementation,
        )
        self.head = DenoisingHead(self.vector_width, self.head_width, self.head_depth)

    def __call__(
        self,
        prefix: Int[Array, "B C"],
        vectors: Float[Array, "B N D"],
        hidden: Bool[Array, "B N"],
        x_t: Float[Array, "B N D"],
        t: Float[Array, "B N"],
    ) -> Float[Array, "B N D"]:
        z = self.read(prefix, vectors, hidden)
        flat = (array.reshape(-1, *array.shape[2:]) for array in (x_t, t, z))
        return self.denoise(*flat).reshape(x_t.shape)

    def read(
        self, prefix: Int[Array, "B C"], vectors: Float[Array, "B N D"], hidden: Bool[Array, "B N"]
    ) -> Float[Array, "B N W"]:
        """z of each place."""
        told = self.prefix_embed(prefix)
        embedded = self.vector_embed(jnp.where(hidden[..., None], 0, vectors).astype(told.dtype))
        places = jnp.where(hidden[..., None], self.mask.astype(told.dtype), embedded)
        return self.transformer.transform(jnp.concatenate([told, places], axis=1))[:, prefix.shape[1] :]

    def denoise(self, x_t: Float[Array, "M D"], t: Float[Array, " M"], z: Float[Array, "M W"]) -> Float[Array, "M D"]:
        """What the head says of noised vectors."""
        return self.head(x_t, t, z)


class DenoisingHead(nn.Module):
    """What a small network says of noised vectors (M,D) at times (M,), told z (M,W): (M,D) in float32."""

    vector_width: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, x_t: Float[Array, "M D"], t: Float[Array, " M"], z: Float[Array, "M W"]) -> Float[Array, "M D"]:
        small = nn.initializers.normal(DEVIATION)
        sinusoid = lying_on(timestep_embedding(1000 * t, 256).astype(z.dtype), ("batch", None))
        c = MLP(self.width, self.width, nn.silu, small, name="t_embedder")(sinusoid)
        c = c + Linear(self.width, (None, "embed"), kernel_init=dense_init, name="z_embedder")(z)
        h = Linear(self.width, (None, "embed"), kernel_init=dense_init, name="x_embedder")(x_t.astype(z.dtype))[:, None]
        for i in range(self.depth):
            shift, scale, gate = AdaLN(self.width, 3, name=f"modulation{i}")(c)
            h = h + gate * MLP(self.width, self.width, nn.silu, name=f"mlp{i}")(layer_norm(h, scale=scale, shift=shift))
        shift, scale = AdaLN(self.width, 2, name="final_modulation")(c)
        zeros = nn.initializers.zeros
        final = Linear(self.vector_width, ("embed", None), kernel_init=zeros, name="final_linear")
        return final(layer_norm(h, scale=scale, shift=shift))[:, 0].astype(jnp.float32)
