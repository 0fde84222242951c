"""Residual blocks of convolutions that need no normalisation, so that no row of a batch sees another.

    x + conv1x1(act(conv3x3 in groups(act(conv1x1(x)))))        wide inside: an inverted bottleneck

The last convolution of a block begins as zero and the other two as He's scaled by L^(-1/4), L the number of blocks of
the network, so that the depth does not change the size of an update at the start (Fixup, Zhang et al. 2019, for m = 3
layers per block: L^(-1/(2m - 2))). As in R3GAN (Huang et al. 2024, section 3).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from genjax.errors import InputError
from genjax.nn.linear import Conv, with_axes

__all__ = ["LEAK", "GroupedConv", "InvertedResidual", "halvings", "he_normal", "resized"]

LEAK = 0.2
"""Slope of the activation of GANs below zero (DCGAN, Radford et al. 2016)."""


def he_normal(scale: float = 1.0) -> nn.initializers.Initializer:
    """Keeps the size of what passes a leaky rectifier and then this layer (He et al. 2015), times `scale`."""
    return nn.initializers.variance_scaling(scale**2 * 2 / (1 + LEAK**2), "fan_in", "normal")


class InvertedResidual(nn.Module):
    """One block; (B, H, W, C) to the same shape, the identity at the start."""

    blocks: int
    """Number of blocks of the whole network, L."""
    expansion: int = 2
    """Width inside over width outside."""
    group_size: int = 16
    """Channels of a group of the 3 x 3 convolution, at most; the width inside is a multiple of it or less."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels = x.shape[-1]
        inside = channels * self.expansion
        groups, rest = divmod(inside, min(inside, self.group_size))
        if rest:
            raise InputError(f"{inside} channels cannot be divided into groups of {self.group_size}")
        init = he_normal(self.blocks**-0.25)
        h = Conv(inside, (1, 1), kernel_init=init, name="widen")(x)
        h = GroupedConv(groups, kernel_init=init, name="mix")(nn.leaky_relu(h, LEAK))
        zeros = nn.initializers.zeros
        return x + Conv(channels, (1, 1), kernel_init=zeros, name="narrow")(nn.leaky_relu(h, LEAK))


class GroupedConv(nn.Module):
    """A 3 x 3 convolution of each group of channels by itself: (B, H, W, C) to the same shape.

    Linen's Conv with `feature_group_count=groups`, parameters included. It is a sum of nine products of matrices, one
    for each place of the kernel, because XLA's derivatives of grouped convolutions take 12 times as long on a CPU, and
    a penalty on slopes takes them twice.
    """

    groups: int
    """Number of groups; it divides the channels."""
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        size = channels // self.groups
        kernel = self.param(
            "kernel", with_axes(self.kernel_init, (None, None, "embed", "mlp")), (3, 3, size, channels)
        ).astype(x.dtype)
        bias = self.param("bias", with_axes(nn.initializers.zeros, ("mlp",)), (channels,)).astype(x.dtype)
        kernel = kernel.reshape(3, 3, size, self.groups, size)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(batch, height + 2, width + 2, self.groups, size)
        places = [(row, column) for row in range(3) for column in range(3)]
        shifted = [padded[:, row : row + height, column : column + width] for row, column in places]
        parts = [jnp.einsum("bhwgi,igo->bhwgo", x, kernel[place]) for x, place in zip(shifted, places, strict=True)]
        return sum(parts).reshape(x.shape) + bias


def resized(x: Float[Array, "B H W C"], factor: float) -> Float[Array, "B H2 W2 C"]:
    """Images with sides `factor` times as long, bilinear, and without aliasing where they shrink."""
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, round(height * factor), round(width * factor), channels), "bilinear")


def halvings(height: int, width: int) -> int:
    """How often an image can be halved until its shorter side has 4 to 7 pixels, at least once.

    So 8 and 28 are halved once and twice. Raises InputError where a side becomes odd before that.
    """
    sides, times = (height, width), 0
    while min(sides) >= 8 and not any(side % 2 for side in sides):
        sides, times = (sides[0] // 2, sides[1] // 2), times + 1
    if not times or min(sides) >= 8:
        raise InputError(
            f"images of {height} x {width} pixels cannot be halved to 4 to 7 pixels along the shorter side"
        )
    return times
