"""What Stable Diffusion 3 reads of a prompt (Esser et al. 2024, arXiv:2403.03206, section 4 and appendix B.3).

    context = [ penultimate of CLIP-L | penultimate of CLIP-bigG | 0 ]     77 tokens, 768 + 1280 of 4096 wide
              [                   features of T5                     ]     behind them, 4096 wide
    pooled  = [ pooled of CLIP-L | pooled of CLIP-bigG ]                   768 + 1280

In training each encoder was left out of 46.4 % of the examples, so that a prompt can be read without one: zeros stand
where it would speak. The empty prompt is read like any other.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from genjax.models.clip_text import SIZES, CLIPText, TextFeatures
from genjax.models.t5_encoder import T5Encoder

__all__ = ["SD3Text"]


class SD3Text(nn.Module):
    """`apply({"params": p}, clip_l, clip_g, t5)` of token ids (B,S), (B,S) and (B,T) returns (context, pooled).

    Parameters are `clip_l`, `clip_g` and `t5`, without those that are left out. Raises ValueError where both CLIPs
    together are wider than T5, whose width is the context's, and where something else is to be left out.
    """

    clip_l: CLIPText = CLIPText(**SIZES["clip-l"])
    """OpenAI's, not projected."""
    clip_g: CLIPText = CLIPText(**SIZES["clip-bigg"])
    """OpenCLIP's, projected."""
    t5: T5Encoder = T5Encoder()
    """T5 v1.1 XXL's encoder."""
    left_out: tuple[str, ...] = ()
    """Of `clip_l`, `clip_g` and `t5` those that are not run."""

    @nn.compact
    def __call__(
        self, clip_l: Int[Array, "B S"], clip_g: Int[Array, "B S"], t5: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B P"]]:
        unknown = set(self.left_out) - {"clip_l", "clip_g", "t5"}
        if unknown:
            raise ValueError(f"left_out names {', '.join(sorted(unknown))}; there are clip_l, clip_g and t5")
        both = self.clip_l.width + self.clip_g.width
        if both > self.t5.width:
            raise ValueError(f"CLIPs of width {both} do not fit into a context of width {self.t5.width}, T5's")
        features = [self._clip("clip_l", clip_l), self._clip("clip_g", clip_g)]
        clip = jnp.concatenate([feature.penultimate for feature in features], axis=-1)
        clip = jnp.pad(clip, ((0, 0), (0, 0), (0, self.t5.width - both)))
        spoken = jnp.zeros((*t5.shape, self.t5.width), clip.dtype) if "t5" in self.left_out else self.t5(t5)
        context = jnp.concatenate([clip, spoken.astype(clip.dtype)], axis=1)
        return context, jnp.concatenate([feature.pooled for feature in features], axis=-1)

    def _clip(self, name: str, tokens: Int[Array, "B S"]) -> TextFeatures:
        encoder = getattr(self, name)
        if name not in self.left_out:
            return encoder(tokens)
        nothing = jnp.zeros((*tokens.shape, encoder.width))
        return TextFeatures(nothing, nothing, jnp.zeros((len(tokens), encoder.projection or encoder.width)))
