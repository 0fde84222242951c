"""The critic of patches (PatchGAN): one score for every place of a picture, of what is seen around it.

    4 x 4 convolutions, padding 1:    stride 2, width -> norm -> stride 2, 2 width -> ... -> stride 1 -> stride 1, 1

(Isola et al. 2017, arXiv:1611.07004, appendix; VQGAN has the same with three strides of 2.) Leaky rectifiers of slope
0.2 stand between; the first convolution has no norm, and no norm has a bias before it. Convolutions of the published
size see 70 x 70 pixels, so that they judge texture, and what a picture shows is left to the reconstruction.

Norms are over groups of channels by default, where no row sees another. Norms over the batch are those of the published
weights: real and drawn pictures each by their own mean and variance, as in training there; then the scores of a batch
go together.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from genjax.errors import InputError
from genjax.models.critics import check_images
from genjax.models.sizes import check_sizes
from genjax.nn.image_blocks import GroupNorm
from genjax.nn.linear import Conv, with_axes

__all__ = ["BatchNorm", "PatchCritic"]

SLOPE = 0.2
"""Of the leaky rectifiers, below zero."""
NORMAL = nn.initializers.normal(0.02)
"""First values of kernels (Isola et al. 2017; DCGAN, Radford et al. 2015)."""


class PatchCritic(nn.Module):
    """Scores of patches: `apply({"params": p}, x (B,H,W,C))` returns (B,h,w), float32, h = floor(H / 2^layers) - 2.

    Raises InputError for what are not images, for images without a patch, and where channels cannot be divided into
    groups.
    """

    width: int = 64
    """Channels of the first convolution; they double from one to the next, up to 8 times as many."""
    layers: int = 3
    """Convolutions of stride 2."""
    norm: Literal["group", "batch"] = "group"
    """Whether norms are over groups of channels, or over the batch."""
    groups: int = 32
    """Groups of each norm."""

    @nn.compact
    def __call__(self, x: Float[Array, "B *shape"]) -> Float[Array, "B *patches"]:
        check_sizes(self, width=1, layers=1, groups=1)
        check_images(self, x)
        least = 3 * 2**self.layers
        if min(x.shape[1:3]) < least:
            raise InputError(
                f"PatchCritic of {self.layers} layers scores images of {least} pixels a side or more, not of"
                f" {x.shape[1]}x{x.shape[2]}: have fewer layers"
            )
        h = x
        for i in range(self.layers + 1):
            last = i == self.layers
            h = Conv(
                self.width * min(2**i, 8),
                (4, 4),
                (None, "embed") if i == 0 else ("embed", "mlp"),
                strides=(1, 1) if last else (2, 2),
                padding=((1, 1), (1, 1)),
                use_bias=i == 0,
                kernel_init=NORMAL,
                name=f"conv_{i}",
            )(h)
            if i:
                h = self.normed(h, f"norm_{i}")
            h = nn.leaky_relu(h, SLOPE)
        score = Conv(1, (4, 4), ("embed", None), padding=((1, 1), (1, 1)), kernel_init=NORMAL, name="score")
        return score(h)[..., 0].astype(jnp.float32)

    def normed(self, h: Float[Array, "B H W C"], name: str) -> Float[Array, "B H W C"]:
        return BatchNorm(name=name)(h) if self.norm == "batch" else GroupNorm(self.groups, 1e-5, name=name)(h)


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, by the moments of the batch (Ioffe and Szegedy 2015).

    x is (B,H,W,C), the moments of each channel over all else, in float32. There are no running moments: a critic is
    asked in training alone.
    """

    epsilon: float = 1e-5
    """Added to the variance."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, variance = (moment(wide, axis=(0, 1, 2)) for moment in (jnp.mean, jnp.var))
        scale = self.param("scale", with_axes(_around_one, (None,)), (x.shape[-1],))
        bias = self.param("bias", with_axes(nn.initializers.zeros, (None,)), (x.shape[-1],))
        return ((wide - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


def _around_one(key, shape, dtype=jnp.float32):
    return 1 + NORMAL(key, shape, dtype)
