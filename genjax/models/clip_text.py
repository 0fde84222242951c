"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020, section 2.4), as Stable Diffusion reads it.

    x = embedding[token] + positions[t]
    x = block(x), `depth` times                 the blocks of GPT-2, causal
    last = LayerNorm(x)
    pooled = projection(last[end])              end: the first token that ends the text

A token sees none after it, so what stands behind the end changes nothing before it. Stable Diffusion 1 conditions on
`last`; XL and 3 on what goes into the last block, without a norm (`penultimate`), and on `pooled`, which of CLIP-L is
not projected (Podell et al. 2023, arXiv:2307.01952, section 2.1; Esser et al. 2024, arXiv:2403.03206, appendix B).
"""

from dataclasses import field
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from genjax.models.gpt import GPTBlock
from genjax.models.sizes import check_sizes
from genjax.nn.activations import Activation
from genjax.nn.attention import AttentionImplementation
from genjax.nn.island import lying_on
from genjax.nn.linear import STACKED, Embedding, Linear, with_axes
from genjax.nn.norms import LayerNorm
from genjax.nn.remat import RematPolicy, rematerialise

__all__ = ["SIZES", "CLIPText", "TextFeatures"]

SIZES: dict[str, dict[str, Any]] = {
    "clip-l": dict(width=768, depth=12, num_heads=12, activation="quick_gelu"),
    "clip-bigg": dict(width=1280, depth=32, num_heads=20, activation="gelu", projection=1280),
}
"""Of Stable Diffusion 3: OpenAI's ViT-L/14 without its projection, and OpenCLIP's ViT-bigG/14."""


class TextFeatures(NamedTuple):
    """What an encoder says of texts."""

    penultimate: Float[Array, "B T D"]
    """What goes into the last block."""
    last: Float[Array, "B T D"]
    """What comes out of it, normed."""
    pooled: Float[Array, "B P"]
    """One vector of the whole."""


class CLIPText(nn.Module):
    """`apply({"params": p}, tokens (B,T) int32)` returns `TextFeatures`.

    Raises ValueError where sizes do not fit each other, and where there are more tokens than positions.
    """

    vocabulary: int = 49_408
    """Number of token ids."""
    positions: int = 77
    """The most tokens of a text."""
    width: int = 768
    """Width of the residual stream."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads, which share the width."""
    mlp_width: int | None = None
    """Inner width of the MLP; None: four times the width."""
    activation: Activation = "quick_gelu"
    """Inside the MLP."""
    projection: int | None = None
    """Width of the pooled vector; None: it is not projected."""
    end: int = 49_407
    """Id of the token that ends a text; where there is none, the first token is pooled."""
    remat: RematPolicy = field(default="none", metadata={"may_change": True})
    """What each block keeps for the backward pass: none (keep all), dots, attention, full (keep its inputs only)."""
    attention_implementation: AttentionImplementation = field(default="auto", metadata={"may_change": True})
    """Which attention kernel to use; auto: the fastest of this machine."""

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> TextFeatures:
        self._check(tokens.shape[1])
        init = nn.initializers.normal(0.02)
        x = Embedding(self.vocabulary, self.width, embedding_init=init, name="embed")(tokens)
        places = self.param("position_embedding", with_axes(init, (None, "embed")), (self.positions, self.width))
        x = lying_on(x + places[: tokens.shape[1]].astype(x.dtype), ("batch", None, None))
        fields = dict(
            num_heads=self.num_heads,
            mlp_width=4 * self.width if self.mlp_width is None else self.mlp_width,
            activation=self.activation,
            causal=True,
            residual_layers=2 * self.depth,
            attention_implementation=self.attention_implementation,
        )
        if self.depth > 1:
            stack = nn.scan(
                rematerialise(GPTBlock, self.remat),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=self.depth - 1,
                metadata_params=STACKED,
            )
            (x, _), _ = stack(**fields, name="blocks")((x, None), None)
        penultimate = x
        (x, _), _ = rematerialise(GPTBlock, self.remat, scanned=False)(**fields, name="last_block")((x, None), None)
        last = LayerNorm(1e-5, name="norm")(x)
        end = jnp.argmax(tokens == self.end, axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        if self.projection is not None:
            pooled = Linear(self.projection, ("embed", None), use_bias=False, kernel_init=init, name="project")(pooled)
        return TextFeatures(penultimate, last, pooled)

    @nn.nowrap
    def _check(self, count: int) -> None:
        check_sizes(self, vocabulary=1, positions=1, width=1, depth=1, num_heads=1)
        for name in ("mlp_width", "projection"):
            if getattr(self, name) is not None:
                check_sizes(self, **{name: 1})
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} is not a multiple of num_heads = {self.num_heads}")
        if count > self.positions:
            raise ValueError(f"a text of {count} tokens is longer than the {self.positions} positions of this network")
