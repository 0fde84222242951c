"""The blocks of convolutional networks for images: the U-Nets of DDPM and ADM, the autoencoders of VQGAN and LDM.

    residual     x + conv(act(norm(conv(act(norm(x))) + W act(c))))         time c adds (Ho et al. 2020, appendix B)
                 x + conv(act(norm(conv(act(norm(x)))) * (1 + s) + b))      (s, b) = W act(c): it scales and shifts
    attention    x + proj(softmax(q k^T / sqrt(H)) v),                      q, k, v linear in norm(x), over all pixels
    upsampling   each pixel four times, then a convolution;     downsampling: a convolution of stride 2

norm is over groups of channels and all pixels (Wu and He 2018), act is SiLU. A residual block may also resample what it
adds to and what it adds, by nearest neighbours or means of 2 x 2 pixels, before its first convolution (BigGAN, Brock et
al. 2019; ADM, Dhariwal and Nichol 2021, section 3). No sample sees another.
"""

from collections.abc import Callable
from typing import Literal, get_args

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from genjax.errors import InputError
from genjax.nn.attention import AttentionImplementation, attention
from genjax.nn.island import lying_on
from genjax.nn.linear import Conv, Linear, with_axes
from genjax.nn.mlp import dense_init

__all__ = [
    "Downsample",
    "GroupNorm",
    "Resampling",
    "ResidualBlock",
    "SpatialAttention",
    "Upsample",
    "dropped",
    "halved",
    "repeated",
]

Resampling = Literal["none", "down", "up"]


class ResidualBlock(nn.Module):
    """One residual block, (B,H,W,C) to (B,H',W',features).

    Where the channels change, x goes through a 1 x 1 convolution. `condition` (B,D) is what modulates it, if anything
    does; `keys` (B,), one for each sample, drop activations, if any are to be dropped. Raises InputError where channels
    cannot be divided into the groups, where a block that is to be scaled gets no condition, and where `resampling` is
    none of its names.
    """

    features: int
    """Channels that come out."""
    groups: int = 32
    """Groups of each norm."""
    epsilon: float = 1e-6
    """Of each norm."""
    scale_shift: bool = False
    """Whether the condition scales and shifts the second norm (ADM), instead of adding to what it normalises (DDPM)."""
    resampling: Resampling = "none"
    """Whether the sides are halved or doubled on the way."""
    dropout: float = 0.0
    """Share of activations that are dropped before the last convolution, in [0, 1)."""
    last_init: Callable = nn.initializers.zeros
    """Of the last convolution: with zeros a fresh block adds nothing."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        condition: Float[Array, "B D"] | None = None,
        keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B H2 W2 C2"]:
        if self.scale_shift and condition is None:
            raise InputError("a residual block that a condition scales and shifts got no condition")
        if self.resampling not in get_args(Resampling):
            accepted = ", ".join(get_args(Resampling))
            raise InputError(f"resampling of a residual block is one of {accepted}, not {self.resampling!r}")
        resampled = {"none": lambda image: image, "down": halved, "up": repeated}[self.resampling]
        x = lying_on(x, ("batch", None, None, None))
        h = nn.silu(GroupNorm(self.groups, self.epsilon, name="norm1")(x))
        x, h = resampled(x), resampled(h)
        h = Conv(self.features, (3, 3), kernel_init=dense_init, name="conv1")(h)
        norm = GroupNorm(self.groups, self.epsilon, name="norm2")
        if condition is None:
            h = norm(h)
        else:
            pieces = 2 if self.scale_shift else 1
            linear = Linear(pieces * self.features, kernel_init=dense_init, name="condition")
            vectors = linear(nn.silu(lying_on(condition, ("batch", None))))[:, None, None]
            if self.scale_shift:
                scale, shift = jnp.split(vectors, 2, axis=-1)
                h = norm(h) * (1 + scale) + shift
            else:
                h = norm(h + vectors)
        h = nn.silu(h)
        if self.dropout and keys is not None:
            h = dropped(h, self.dropout, keys)
        h = Conv(self.features, (3, 3), ("mlp", "embed"), kernel_init=self.last_init, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), kernel_init=dense_init, name="shortcut")(x)
        return x + h


class SpatialAttention(nn.Module):
    """Every pixel attends to all pixels of its image: (B,H,W,C) to the same shape.

    Raises InputError where the channels cannot be divided into heads, or groups.
    """

    head_dim: int | None = None
    """Width of one head; None: as `num_heads` say."""
    num_heads: int = 1
    """Number of heads, where no width of a head is given."""
    groups: int = 32
    """Groups of the norm."""
    epsilon: float = 1e-6
    """Of the norm."""
    last_init: Callable = nn.initializers.zeros
    """Of the projection: with zeros a fresh block adds nothing."""
    attention_implementation: AttentionImplementation = "auto"
    """Which attention kernel to use; auto: the fastest of this machine."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        divisor = self.num_heads if self.head_dim is None else self.head_dim
        if divisor < 1 or channels % divisor:
            what = f"{self.num_heads} heads" if self.head_dim is None else f"heads of width {self.head_dim}"
            raise InputError(f"{channels} channels cannot be divided into {what}")
        heads = divisor if self.head_dim is None else channels // divisor
        x = lying_on(x, ("batch", None, None, None))
        tokens = GroupNorm(self.groups, self.epsilon, name="norm")(x).reshape(batch, height * width, channels)
        qkv = Linear(3 * channels, ("embed", "heads"), kernel_init=dense_init, name="qkv")(tokens)
        query, key, value = (part.reshape(batch, -1, heads, channels // heads) for part in jnp.split(qkv, 3, axis=-1))
        attended = attention(query, key, value, implementation=self.attention_implementation)
        proj = Linear(channels, ("heads", "embed"), kernel_init=self.last_init, name="proj")
        return x + proj(attended.reshape(tokens.shape)).reshape(x.shape)


class Upsample(nn.Module):
    """Sides twice as long: each pixel four times, then a 3 x 3 convolution that keeps the channels."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        return Conv(x.shape[-1], (3, 3), kernel_init=dense_init, name="conv")(repeated(x))


class Downsample(nn.Module):
    """Sides half as long, by a 3 x 3 convolution of stride 2 that keeps the channels.

    Raises InputError where a side is odd.
    """

    padding: int = 0
    """Zeros around the image: 1 on each side (ADM); 0: below and to the right only (DDPM, the autoencoders)."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        if self.padding not in (0, 1):
            raise InputError(f"padding of a downsampling convolution is 0 or 1, not {self.padding}")
        _check_even(x)
        around = ((self.padding, 1),) * 2
        return Conv(x.shape[-1], (3, 3), strides=(2, 2), padding=around, kernel_init=dense_init, name="conv")(x)


class GroupNorm(nn.Module):
    """Norm over groups of channels and all pixels, with its statistics in float32 whatever the compute type.

    Raises InputError where the channels cannot be divided into groups.
    """

    groups: int = 32
    """Number of groups."""
    epsilon: float = 1e-6
    """Of the variance."""

    @nn.compact
    def __call__(self, x: Float[Array, "B *pixels C"]) -> Float[Array, "B *pixels C"]:
        channels = x.shape[-1]
        if self.groups < 1 or channels % self.groups:
            raise InputError(f"{channels} channels cannot be divided into {self.groups} groups")
        scale = self.param("scale", with_axes(nn.initializers.ones, ("embed",)), (channels,))
        bias = self.param("bias", with_axes(nn.initializers.zeros, ("embed",)), (channels,))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        pixels = tuple(range(1, x.ndim - 1))

        def over_groups(of_channels: Float[Array, "B C"]) -> Float[Array, "B *ones C"]:
            # Of pixels first and of channels then: XLA's CPU backend takes five times as long for both at once.
            parts = of_channels.reshape(len(x), self.groups, -1)
            means = jnp.broadcast_to(parts.mean(axis=-1, keepdims=True), parts.shape)
            return means.reshape(len(x), *[1 for _ in pixels], channels)

        # Scale and bias too as of each sample: so are their gradients summed over pixels first.
        deviation = wide - over_groups(wide.mean(pixels))
        inverse = jax.lax.rsqrt(over_groups(jnp.square(deviation).mean(pixels)) + self.epsilon)
        bias = jnp.broadcast_to(bias, inverse.shape)
        return (deviation * (inverse * scale) + bias).astype(x.dtype)


def repeated(x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    """Every pixel four times: sides twice as long, nearest neighbours."""
    return einops.repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)


def halved(x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    """Means of 2 x 2 pixels: sides half as long. Raises InputError where a side is odd."""
    _check_even(x)
    return einops.reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)


def dropped(x: Float[Array, "B *shape"], rate: float, keys: Key[Array, " B"]) -> Float[Array, "B *shape"]:
    """x, each entry zero with this probability and otherwise 1 / (1 - rate) times as large (Srivastava et al. 2014).

    What is dropped of a sample depends on its own key alone.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def _check_even(x: Array) -> None:
    height, width = x.shape[1:3]
    if height % 2 or width % 2:
        raise InputError(f"an image of {height} x {width} pixels cannot be halved: its sides must be even")
