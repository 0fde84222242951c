"""A classifier of noised images: the U-Net's way down, told the time (Dhariwal and Nichol 2021, arXiv:2105.05233, 4).

    c       = MLP(sinusoid(1000 t))                                    it modulates every residual block
    h       = residual blocks, with attention at some levels, sides halved from level to level
    logits  = linear in the mean of act(norm(h)) over all pixels

(ADM pools by attention instead; at sides of a few pixels the mean is as good.) A fresh network has no preference.
"""

from dataclasses import field

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from genjax.errors import InputError
from genjax.models.sizes import check_sizes
from genjax.nn.attention import AttentionImplementation
from genjax.nn.embeddings import timestep_embedding
from genjax.nn.image_blocks import Downsample, GroupNorm, ResidualBlock, SpatialAttention
from genjax.nn.island import lying_on
from genjax.nn.linear import Conv, Linear
from genjax.nn.mlp import MLP, dense_init

__all__ = ["NoisyClassifier"]


class NoisyClassifier(nn.Module):
    """The class of a noised image.

    `apply({"params": p}, x_t (B,H,W,C), t (B,) in [0,1])` returns logits (B, num_classes), float32. Raises InputError
    where sides cannot be halved, and where channels cannot be divided into groups or heads.
    """

    num_classes: int = 10
    """Number of classes."""
    widths: tuple[int, ...] = (32, 64)
    """Channels at each level, whole resolution first; the sides are halved from level to level."""
    blocks: int = 1
    """Residual blocks at each level."""
    attention_levels: tuple[int, ...] = (1,)
    """Levels (0: whole resolution) at which attention follows each residual block."""
    num_heads: int = 1
    """Number of heads of every attention."""
    groups: int = 8
    """Groups of each norm."""
    time_scale: float = 1000.0
    """What t is multiplied by before it becomes sinusoids."""
    attention_implementation: AttentionImplementation = field(default="auto", metadata={"may_change": True})
    """Which attention kernel to use; auto: the fastest of this machine."""

    @nn.compact
    def __call__(self, x_t: Float[Array, "B H W C"], t: Float[Array, " B"]) -> Float[Array, "B K"]:
        check_sizes(self, num_classes=1, blocks=1, num_heads=1, groups=1)
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths of NoisyClassifier are positive, one for each level, not {self.widths}")
        width = 4 * self.widths[0]
        sinusoid = timestep_embedding(self.time_scale * t, self.widths[0]).astype(x_t.dtype)
        modulation = MLP(width, width, nn.silu, name="t_embedder")(lying_on(sinusoid, ("batch", None)))
        x = Conv(self.widths[0], (3, 3), (None, "embed"), kernel_init=dense_init, name="conv_in")(x_t)
        for level, features in enumerate(self.widths):
            if level:
                x = Downsample(name=f"down_{level}")(x)
            for i in range(self.blocks):
                x = ResidualBlock(features, self.groups, scale_shift=True, name=f"residual_{level}_{i}")(x, modulation)
                if level in self.attention_levels:
                    attention = SpatialAttention(
                        num_heads=self.num_heads,
                        groups=self.groups,
                        attention_implementation=self.attention_implementation,
                        name=f"attention_{level}_{i}",
                    )
                    x = attention(x)
        pooled = nn.silu(GroupNorm(self.groups, name="norm_out")(x)).mean(axis=(1, 2))
        logits = Linear(self.num_classes, ("embed", None), kernel_init=jax.nn.initializers.zeros, name="linear_out")
        return logits(pooled).astype(jnp.float32)
