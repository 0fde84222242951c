"""Generators: from a latent z ~ N(0, I), and perhaps a class, to an example.

Three of rising strength: a perceptron for points; DCGAN's transposed convolutions (Radford et al. 2016, as in table 3
of Miyato et al. 2018); and a residual network without normalisation (R3GAN, Huang et al. 2024). Images leave through
tanh, in [-1, 1]. No batch normalisation: a sample is made by its own latent alone.

A class enters as an embedding beside z, which is the same as a learned vector added after the first linear layer.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from genjax.errors import InputError
from genjax.models.labels import check_label
from genjax.models.sizes import check_sizes
from genjax.nn.linear import Conv, ConvTranspose, Embedding, Linear, with_axes
from genjax.nn.resnet import InvertedResidual, halvings, resized

__all__ = ["DCGANGenerator", "MLPGenerator", "ResNetGenerator", "WithClass", "dcgan_init"]

dcgan_init = nn.initializers.normal(0.02)
"""DCGAN's, for layers whose output is normalised."""


class MLPGenerator(nn.Module):
    """Points from latents: `apply({"params": p}, z (B, Z), label (B,) or None)` returns (B, features)."""

    features: int = 2
    """Coordinates of a point."""
    width: int = 128
    """Width of the hidden layers (512 in WGAN-GP's toy)."""
    depth: int = 3
    """Number of hidden layers."""
    num_classes: int = 0
    """Number of classes; 0: no label is taken."""

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], label: Int[Array, " B"] | None = None) -> Float[Array, "B features"]:
        check_sizes(self, features=1, width=1, depth=0)
        h = WithClass(self.num_classes, name="class")(z, label)
        for i in range(self.depth):
            h = nn.relu(Linear(self.width, kernel_init=nn.initializers.he_normal(), name=f"fc{i + 1}")(h))
        return Linear(self.features, ("embed", None), name="out")(h)


class DCGANGenerator(nn.Module):
    """Images by transposed convolutions: `apply({"params": p}, z (B, Z), label (B,) or None)` returns (B, H, W, C).

    The smallest grid has 4 to 7 cells along its shorter side, the channels halve as it doubles, and group norm takes
    the place of batch norm. Raises InputError for an image that has no such grid.
    """

    image_shape: tuple[int, int, int] = (8, 8, 1)
    """Height, width and channels; sides are 4 to 7 times a power of two."""
    width: int = 32
    """Channels at full resolution, a multiple of `groups` (64 in Miyato et al.)."""
    groups: int = 8
    """Groups of each group norm."""
    num_classes: int = 0
    """Number of classes; 0: no label is taken."""

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], label: Int[Array, " B"] | None = None) -> Float[Array, "B H W C"]:
        check_sizes(self, width=1, groups=1)
        height, width, channels = self.image_shape
        levels = halvings(height, width)
        if self.width % self.groups:
            raise InputError(f"a width of {self.width} channels cannot be divided into {self.groups} groups")
        grid = (height >> levels, width >> levels, self.width << levels)
        h = Linear(math.prod(grid), kernel_init=dcgan_init, name="project")(
            WithClass(self.num_classes, name="class")(z, label)
        )
        h = h.reshape(-1, *grid)
        for level in reversed(range(levels)):
            h = nn.relu(nn.GroupNorm(self.groups, name=f"norm_{level + 1}")(h))
            h = ConvTranspose(self.width << level, (4, 4), strides=(2, 2), kernel_init=dcgan_init, name=f"up_{level}")(
                h
            )
        h = nn.relu(nn.GroupNorm(self.groups, name="norm_0")(h))
        return jnp.tanh(Conv(channels, (3, 3), ("embed", None), kernel_init=dcgan_init, name="out")(h))


class ResNetGenerator(nn.Module):
    """Images by residual blocks: `apply({"params": p}, z (B, Z), label (B,) or None)` returns (B, H, W, C).

    It begins with a learned grid of vectors whose channels z scales. Raises InputError as DCGANGenerator does.
    """

    image_shape: tuple[int, int, int] = (8, 8, 1)
    """Height, width and channels; sides are 4 to 7 times a power of two."""
    width: int = 32
    """Channels at full resolution; they double as the grid halves."""
    max_width: int = 512
    """Channels at most."""
    blocks_per_level: int = 1
    """Residual blocks at each resolution (2 in R3GAN)."""
    num_classes: int = 0
    """Number of classes; 0: no label is taken."""

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], label: Int[Array, " B"] | None = None) -> Float[Array, "B H W C"]:
        check_sizes(self, width=1, max_width=1, blocks_per_level=1)
        height, width, channels = self.image_shape
        levels = halvings(height, width)
        widths = [min(self.width << level, self.max_width) for level in range(levels + 1)]
        z = WithClass(self.num_classes, name="class")(z, label)
        grid = (height >> levels, width >> levels, widths[-1])
        basis = self.param("basis", with_axes(nn.initializers.normal(1.0), (None, None, "embed")), grid)
        h = basis * Linear(widths[-1], name="modulate")(z)[:, None, None]
        for level in reversed(range(levels + 1)):
            if level < levels:
                h = resized(h, 2)
                if widths[level] != h.shape[-1]:
                    h = Conv(widths[level], (1, 1), use_bias=False, name=f"up_{level}")(h)
            for i in range(self.blocks_per_level):
                h = InvertedResidual(self.blocks_per_level * (levels + 1), name=f"block_{level}_{i}")(h)
        return jnp.tanh(Conv(channels, (1, 1), ("embed", None), name="out")(h))


class WithClass(nn.Module):
    """[z | embedding of the label]; z alone where there are no classes."""

    num_classes: int

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], label: Int[Array, " B"] | None) -> Float[Array, "B Z2"]:
        check_label(self.num_classes, label)
        if label is None:
            return z
        normal = nn.initializers.normal(1.0)  # as large as z, so that neither drowns the other
        return jnp.concatenate([z, Embedding(self.num_classes, z.shape[-1], embedding_init=normal)(label)], axis=-1)
