"""The convolutional autoencoder of VQGAN (Esser et al. 2021, arXiv:2012.09841) and latent diffusion (Rombach et al.
2022, arXiv:2112.10752), whose latents Stable Diffusion 1 to 3 and many others generate.

    encoder    convolution; at each level some residual blocks, then the sides are halved; residual block, attention,
               residual block; norm, SiLU, convolution to the channels of the latent
    decoder    the mirror image, with one residual block more at each level
    between    perhaps a 1 x 1 convolution on either side, to as many channels as a code has

What lies between is not said here: a quantiser makes codes of latents, and a variational autoencoder reads the
encoder's channels as means and log-variances. `decode` is `to_image`, a convolution, of `features`: a loss that weighs
its terms by their gradients at the last kernel (VQGAN, equation 7) needs the features once.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from genjax.errors import InputError
from genjax.models.sizes import check_sizes
from genjax.nn.attention import AttentionImplementation
from genjax.nn.image_blocks import Downsample, GroupNorm, ResidualBlock, SpatialAttention, Upsample
from genjax.nn.linear import Conv
from genjax.nn.mlp import dense_init

__all__ = ["SIZES", "Autoencoder", "Decoder", "Encoder"]

_KL: dict[str, Any] = dict(widths=(128, 256, 512, 512), moments=True)

SIZES: dict[str, dict[str, Any]] = {
    "vqgan-f16": dict(widths=(128, 128, 256, 256, 512), attention_levels=(4,), z_channels=256, code_channels=256),
    "vq-f8": dict(widths=(128, 256, 256, 512), attention_levels=(3,), z_channels=4, code_channels=4),
    "vq-f4": dict(widths=(128, 256, 512), z_channels=3, code_channels=3),
    "kl-f8": _KL | dict(z_channels=4, code_channels=4),
    "kl-f8-16": _KL | dict(z_channels=16),
    "kl-f16": _KL | dict(widths=(128, 128, 256, 256, 512), attention_levels=(4,), z_channels=16, code_channels=16),
}
"""The published sizes, Autoencoder(**SIZES["kl-f8"]): taming-transformers' VQGAN of ImageNet; latent diffusion's VQ f4
and f8 and KL f16 (MAR's); kl-f8 of Stable Diffusion 1, 2 and XL; kl-f8-16 of Stable Diffusion 3 and FLUX."""


class _Side(nn.Module):
    """Fields that encoder and decoder share."""

    widths: tuple[int, ...]
    blocks: int
    attention_levels: tuple[int, ...]
    middle_attention: bool
    groups: int
    epsilon: float
    attention_implementation: AttentionImplementation

    def residual(self, x: Array, width: int, name: str) -> Array:
        return ResidualBlock(width, self.groups, self.epsilon, name=name)(x)

    def attended(self, x: Array, name: str) -> Array:
        return SpatialAttention(
            groups=self.groups,
            epsilon=self.epsilon,
            attention_implementation=self.attention_implementation,
            name=name,
        )(x)

    def middle(self, x: Array) -> Array:
        x = self.residual(x, self.widths[-1], "middle_residual_0")
        if self.middle_attention:
            x = self.attended(x, "middle_attention")
        return self.residual(x, self.widths[-1], "middle_residual_1")

    def normed(self, x: Array) -> Array:
        return nn.silu(GroupNorm(self.groups, self.epsilon, name="norm_out")(x))


class Encoder(_Side):
    """Images (B,H,W,C) to (B,h,w,out); sides are 2^(levels - 1) times shorter."""

    out: int = 4
    """Channels that come out."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        x = Conv(self.widths[0], (3, 3), (None, "embed"), kernel_init=dense_init, name="conv_in")(x)
        for level, width in enumerate(self.widths):
            for i in range(self.blocks):
                x = self.residual(x, width, f"down_{level}_residual_{i}")
                if level in self.attention_levels:
                    x = self.attended(x, f"down_{level}_attention_{i}")
            if level < len(self.widths) - 1:
                x = Downsample(name=f"down_{level}_resample")(x)
        x = self.normed(self.middle(x))
        return Conv(self.out, (3, 3), ("embed", None), kernel_init=dense_init, name="conv_out")(x)


class Decoder(_Side):
    """Latents (B,h,w,C) to features (B,H,W,widths[0]), of which one convolution makes an image."""

    @nn.compact
    def __call__(self, z: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        x = Conv(self.widths[-1], (3, 3), (None, "embed"), kernel_init=dense_init, name="conv_in")(z)
        x = self.middle(x)
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.blocks + 1):
                x = self.residual(x, width, f"up_{level}_residual_{i}")
                if level in self.attention_levels:
                    x = self.attended(x, f"up_{level}_attention_{i}")
            if level:
                x = Upsample(name=f"up_{level}_resample")(x)
        return self.normed(x)


class Autoencoder(nn.Module):
    """Encoder and decoder: `apply({"params": p}, image, method="encode")`, and "decode" or "features" of codes.

    image (B,H,W,image_channels) in [-1,1]; a code is (B,h,w,code_width), and `encode` gives twice as many channels with
    `moments`, means first. Raises InputError where a side is no multiple of 2^(levels - 1), and where channels cannot
    be divided into groups.
    """

    image_channels: int = 3
    """Channels of the image."""
    widths: tuple[int, ...] = (128, 256, 512, 512)
    """Channels at each level, whole resolution first; the sides are halved from level to level."""
    blocks: int = 2
    """Residual blocks at each level of the encoder; the decoder has one more."""
    attention_levels: tuple[int, ...] = ()
    """Levels (0: whole resolution) at which attention follows each residual block."""
    middle_attention: bool = True
    """Whether there is attention between the two blocks in the middle."""
    z_channels: int = 4
    """Channels between encoder and decoder."""
    code_channels: int | None = None
    """Channels of a code, reached by 1 x 1 convolutions; None: those between, and no such convolutions."""
    moments: bool = False
    """Whether the encoder gives a mean and a log-variance of each channel of a code."""
    groups: int = 32
    """Groups of each norm."""
    epsilon: float = 1e-6
    """Of each norm."""
    attention_implementation: AttentionImplementation = "auto"
    """Which attention kernel to use; auto: the fastest of this machine."""

    def __post_init__(self):
        super().__post_init__()
        check_sizes(self, image_channels=1, blocks=1, z_channels=1, groups=1)
        if self.code_channels is not None:
            check_sizes(self, code_channels=1)
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths of Autoencoder are positive, one for each level, not {self.widths}")
        if not set(self.attention_levels) <= set(range(len(self.widths))):
            last = len(self.widths) - 1
            raise InputError(f"attention_levels of Autoencoder lie in 0 to {last}, not {self.attention_levels}")
        for width in self.widths:
            if width % self.groups:
                raise InputError(f"a width of {width} channels cannot be divided into {self.groups} groups")

    @property
    def stride(self) -> int:
        """Pixels along a side of an image for one of a latent."""
        return 2 ** (len(self.widths) - 1)

    @property
    def code_width(self) -> int:
        """Channels of a code."""
        return self.z_channels if self.code_channels is None else self.code_channels

    def setup(self):
        pieces = 2 if self.moments else 1
        shared = dict(
            widths=self.widths,
            blocks=self.blocks,
            attention_levels=self.attention_levels,
            middle_attention=self.middle_attention,
            groups=self.groups,
            epsilon=self.epsilon,
            attention_implementation=self.attention_implementation,
        )
        self.encoder = Encoder(**shared, out=pieces * self.z_channels)
        self.decoder = Decoder(**shared)
        self.conv_out = Conv(self.image_channels, (3, 3), ("embed", None), kernel_init=dense_init)
        if self.code_channels is not None:
            self.quant_conv = Conv(pieces * self.code_channels, (1, 1), (None, None), kernel_init=dense_init)
            self.post_quant_conv = Conv(self.z_channels, (1, 1), (None, None), kernel_init=dense_init)

    def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The image again, by the means where there are moments; nothing is quantised or drawn."""
        return self.decode(jnp.split(self.encode(image), 2 if self.moments else 1, axis=-1)[0])

    def encode(self, image: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        """Codes before any quantiser, or their moments."""
        for side in image.shape[1:3]:
            if side % self.stride:
                raise InputError(
                    f"an image side of {side} is no multiple of {self.stride}, the stride of the autoencoder"
                )
        z = self.encoder(image)
        return z if self.code_channels is None else self.quant_conv(z)

    def features(self, code: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        """What the last convolution sees, of codes."""
        return self.decoder(code if self.code_channels is None else self.post_quant_conv(code))

    def to_image(self, features: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        """Images of features, not clipped: the last convolution."""
        return self.conv_out(features)

    def decode(self, code: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        """Images of codes, not clipped."""
        return self.to_image(self.features(code))
