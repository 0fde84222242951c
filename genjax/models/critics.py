"""Critics: from an example, and perhaps a class, to one unbounded score.

They stand beside the generators: a perceptron, DCGAN's strided convolutions, and a residual network (R3GAN, Huang et
al. 2024). None of them normalises its activations: gradient penalties need rows that do not see one another, and
constraints of parameters bound no slope behind a normalisation. Scores are float32.

With classes the score is a projection (Miyato and Koyama 2018): psi(h) + <embedding(class), h>, with h the
features of the last layer. The log ratio of densities splits in this way when classes are log-linear in h.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from genjax.errors import InputError
from genjax.models.labels import check_label
from genjax.models.sizes import check_sizes
from genjax.nn.linear import Conv, Embedding, Linear
from genjax.nn.resnet import LEAK, InvertedResidual, halvings, he_normal, resized

__all__ = ["DCGANCritic", "MLPCritic", "ResNetCritic", "Score", "check_images"]


class MLPCritic(nn.Module):
    """Scores of points (or of anything, flattened): `apply({"params": p}, x (B, ...), label or None)` returns (B,)."""

    width: int = 128
    """Width of the hidden layers (512 in WGAN-GP's toy)."""
    depth: int = 3
    """Number of hidden layers."""
    num_classes: int = 0
    """Number of classes; 0: no label is taken."""

    @nn.compact
    def __call__(self, x: Float[Array, "B *shape"], label: Int[Array, " B"] | None = None) -> Float[Array, " B"]:
        check_sizes(self, width=1, depth=0)
        h = x.reshape(len(x), -1)
        for i in range(self.depth):
            h = nn.leaky_relu(Linear(self.width, kernel_init=he_normal(), name=f"fc{i + 1}")(h), LEAK)
        return Score(self.num_classes, name="score")(h, label)


class DCGANCritic(nn.Module):
    """Scores of images by strided convolutions: `apply({"params": p}, x (B, H, W, C), label or None)` returns (B,).

    A 3 x 3 convolution, then 4 x 4 ones of stride 2 whose channels double, down to 4 to 7 cells along the shorter side
    (table 3 of Miyato et al. 2018, without its 3 x 3 ones between). Raises InputError for images without such a grid.
    """

    width: int = 32
    """Channels at full resolution; they double as the grid halves."""
    num_classes: int = 0
    """Number of classes; 0: no label is taken."""

    @nn.compact
    def __call__(self, x: Float[Array, "B *shape"], label: Int[Array, " B"] | None = None) -> Float[Array, " B"]:
        check_sizes(self, width=1)
        check_images(self, x)
        levels = halvings(*x.shape[1:3])
        h = nn.leaky_relu(Conv(self.width, (3, 3), kernel_init=he_normal(), name="in")(x), LEAK)
        for level in range(1, levels + 1):
            down = Conv(self.width << level, (4, 4), strides=(2, 2), kernel_init=he_normal(), name=f"down_{level}")
            h = nn.leaky_relu(down(h), LEAK)
        return Score(self.num_classes, name="score")(h.reshape(len(h), -1), label)


class ResNetCritic(nn.Module):
    """Scores of images by residual blocks: `apply({"params": p}, x (B, H, W, C), label or None)` returns (B,).

    The mirror of ResNetGenerator; it ends with a learned grid of weights, one per cell and channel, that sums the last
    grid to a vector. Its blocks begin as the identity, so it is not for spectral normalisation. Raises InputError for
    images that have no grid of 4 to 7 cells along the shorter side.
    """

    width: int = 32
    """Channels at full resolution; they double as the grid halves."""
    max_width: int = 512
    """Channels at most."""
    blocks_per_level: int = 1
    """Residual blocks at each resolution (2 in R3GAN)."""
    num_classes: int = 0
    """Number of classes; 0: no label is taken."""

    @nn.compact
    def __call__(self, x: Float[Array, "B *shape"], label: Int[Array, " B"] | None = None) -> Float[Array, " B"]:
        check_sizes(self, width=1, max_width=1, blocks_per_level=1)
        check_images(self, x)
        levels = halvings(*x.shape[1:3])
        widths = [min(self.width << level, self.max_width) for level in range(levels + 1)]
        h = Conv(widths[0], (1, 1), name="in")(x)
        for level, width in enumerate(widths):
            if level:
                h = resized(h, 0.5)
                if width != h.shape[-1]:
                    h = Conv(width, (1, 1), use_bias=False, name=f"down_{level}")(h)
            for i in range(self.blocks_per_level):
                h = InvertedResidual(self.blocks_per_level * (levels + 1), name=f"block_{level}_{i}")(h)
        cells = h.shape[1] * h.shape[2]
        basis = self.param("basis", nn.initializers.normal(cells**-0.5), h.shape[1:])
        return Score(self.num_classes, name="score")(jnp.einsum("bhwc,hwc->bc", h, basis), label)


class Score(nn.Module):
    """psi(h) + <embedding(label), h>, float32; psi(h) alone where there are no classes."""

    num_classes: int

    @nn.compact
    def __call__(self, h: Float[Array, "B F"], label: Int[Array, " B"] | None) -> Float[Array, " B"]:
        check_label(self.num_classes, label)
        score = Linear(1, ("embed", None), name="psi")(h)[:, 0].astype(jnp.float32)
        if label is None:
            return score
        towards = Embedding(self.num_classes, h.shape[-1], name="classes")(label)
        return score + jnp.einsum("bf,bf->b", towards, h, preferred_element_type=jnp.float32)


def check_images(network: nn.Module, x: Float[Array, "B *shape"]) -> None:
    """Raises InputError where rows are not images (H, W, C)."""
    if x.ndim != 4:
        raise InputError(f"{type(network).__name__} scores images (height, width, channels), not rows of {x.shape[1:]}")
