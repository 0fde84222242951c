"""The encoder of T5 v1.1 (Raffel et al. 2020, arXiv:1910.10683, section 2.1, with Shazeer 2020, arXiv:2002.05202).

    x  = embedding[token]
    x += o(attention(q(h), k(h), v(h), bias)),       h = RMSNorm(x)
    x += down(gelu(gate(h)) * up(h)),                h = RMSNorm(x)
    features = RMSNorm(x)

Nothing has a bias but attention, whose bias says how far away a key is: a number for each head and each bucket of
distances, shared by all blocks. Products of queries and keys are not divided by sqrt(head_dim): the first weights are
small instead. Every token sees every other, padding too, as Stable Diffusion 3 was trained.

In float16 the released sizes overflow; bfloat16 and float32 do not.
"""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from genjax.models.sizes import check_sizes
from genjax.nn.attention import AttentionImplementation, attention
from genjax.nn.gated_mlp import GatedMLP
from genjax.nn.island import lying_on
from genjax.nn.linear import STACKED, Embedding, Linear, with_axes
from genjax.nn.norms import RMSNorm
from genjax.nn.remat import RematPolicy, rematerialise

__all__ = ["SIZES", "T5Block", "T5Encoder", "relative_buckets"]

SIZES: dict[str, dict[str, Any]] = {
    "t5-v1.1-small": dict(width=512, depth=8, num_heads=6, mlp_width=1024),
    "t5-v1.1-base": dict(width=768, depth=12, num_heads=12, mlp_width=2048),
    "t5-v1.1-large": dict(width=1024, depth=24, num_heads=16, mlp_width=2816),
    "t5-v1.1-xl": dict(width=2048, depth=24, num_heads=32, mlp_width=5120),
    "t5-v1.1-xxl": dict(width=4096, depth=24, num_heads=64, mlp_width=10_240),
}


class T5Encoder(nn.Module):
    """`apply({"params": p}, tokens (B,T) int32)` returns features (B,T,width) of the tokens.

    Raises ValueError where buckets are fewer than four, or distances beyond the exact ones are none.
    """

    vocabulary: int = 32_128
    """Number of token ids."""
    width: int = 4096
    """Width of the residual stream."""
    depth: int = 24
    """Number of blocks."""
    num_heads: int = 64
    """Attention heads."""
    head_dim: int = 64
    """Width of a head; all heads together need not have the width of the stream."""
    mlp_width: int = 10_240
    """Inner width of the gated MLP."""
    buckets: int = 32
    """Buckets of distances, half of them for keys behind the query."""
    max_distance: int = 128
    """From here on all distances are in one bucket."""
    remat: RematPolicy = field(default="none", metadata={"may_change": True})
    """What each block keeps for the backward pass: none (keep all), dots, attention, full (keep its inputs only)."""
    attention_implementation: AttentionImplementation = field(default="auto", metadata={"may_change": True})
    """Which attention kernel to use; auto: the fastest of this machine."""

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        check_sizes(self, vocabulary=1, width=1, depth=1, num_heads=1, head_dim=1, mlp_width=1, buckets=4)
        if self.max_distance <= self.buckets // 4:
            raise ValueError(
                f"max_distance = {self.max_distance} is no more than the {self.buckets // 4} exact distances"
            )
        x = Embedding(self.vocabulary, self.width, embedding_init=nn.initializers.normal(1.0), name="embed")(tokens)
        x = lying_on(x, ("batch", None, None))
        init = with_axes(nn.initializers.normal(self.width**-0.5), (None, "heads"))
        table = self.param("distances", init, (self.buckets, self.num_heads))
        buckets = relative_buckets(tokens.shape[1], self.buckets, self.max_distance)
        bias = jnp.moveaxis(table[buckets], -1, 0)[None]
        stack = nn.scan(
            rematerialise(T5Block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            metadata_params=STACKED,
        )
        x, _ = stack(self.num_heads, self.head_dim, self.mlp_width, self.attention_implementation, name="blocks")(
            x, bias
        )
        return RMSNorm(name="norm")(x)


class T5Block(nn.Module):
    """One block over the carry x (B,T,D); see the module's equations. `bias` is (1,N,T,T)."""

    num_heads: int
    head_dim: int
    mlp_width: int
    attention_implementation: AttentionImplementation = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], bias: Float[Array, "1 N T T"]) -> tuple[Float[Array, "B T D"], None]:
        width, inner = x.shape[-1], self.num_heads * self.head_dim

        def linear(features, name, axes, deviation):
            init = nn.initializers.normal(deviation)
            return Linear(features, axes, use_bias=False, kernel_init=init, name=name)

        h = RMSNorm(name="attention_norm")(x)
        deviations = {"q": (width * self.head_dim) ** -0.5, "k": width**-0.5, "v": width**-0.5}
        heads = (
            linear(inner, name, ("embed", "heads"), deviation)(h).reshape(*x.shape[:2], self.num_heads, self.head_dim)
            for name, deviation in deviations.items()
        )
        attended = attention(*heads, bias=bias, scale=1.0, implementation=self.attention_implementation)
        x = x + linear(width, "o", ("heads", "embed"), inner**-0.5)(attended.reshape(*x.shape[:2], inner))

        h = RMSNorm(name="mlp_norm")(x)
        up, down = nn.initializers.normal(width**-0.5), nn.initializers.normal(self.mlp_width**-0.5)
        return x + GatedMLP(self.mlp_width, width, nn.gelu, up, down, name="mlp")(h), None


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "T T"]:
    """The bucket of each pair (query, key) of a text, by the key's place less the query's (T5's appendix of code).

    Half of the buckets are for keys behind the query. Of each half, half are for one distance each, and the others
    grow with its logarithm up to `max_distance`.
    """
    places = np.arange(length)
    offset = places[None, :] - places[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # in float32, as the released networks were trained: where a logarithm is a whole number, its rounding decides
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(max_distance / exact)
    )
    far = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int32), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)
