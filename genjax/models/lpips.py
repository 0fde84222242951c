"""LPIPS: how unlike two pictures look, by what a network for recognition sees in them.

    d(x, y) = sum over taps l of mean over places of  w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2

(Zhang et al. 2018, arXiv:1801.03924, equation 1.) f_l are the channels of VGG16 (Simonyan and Zisserman 2014) after the
last rectifier before each of its poolings, each place's brought to length 1; w_l >= 0 were fitted to what people say.
Pictures in [-1, 1] are first brought to the mean and deviation that VGG saw. A fresh network is random and says nothing
of how pictures look: weights come from a file (`genjax.interop.lpips`).
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from genjax.errors import InputError
from genjax.nn.linear import Conv, with_axes

__all__ = ["LPIPS", "VGG16", "unit_channels"]

STAGES = (("conv1", 64, 2), ("conv2", 128, 2), ("conv3", 256, 3), ("conv4", 512, 3), ("conv5", 512, 3))
"""Name, channels and number of convolutions between two poolings of VGG16."""

SHIFT, SCALE = np.array([-0.030, -0.088, -0.188], np.float32), np.array([0.458, 0.448, 0.450], np.float32)
"""Of the channels of a picture in [-1, 1] (ImageNet's mean and deviation, as in their code)."""

LEAST = 16
"""Pixels a side at least: four poolings."""


class LPIPS(nn.Module):
    """`apply({"params": p}, x (B,H,W,3), y (B,H,W,3))` returns distances (B,), float32; pictures are in [-1, 1].

    Raises InputError for pictures of other channels, or of fewer than 16 pixels a side.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]) -> Float[Array, " B"]:
        if x.shape != y.shape or x.shape[-1] != 3 or min(x.shape[1:3]) < LEAST:
            raise InputError(
                f"LPIPS compares colour pictures of {LEAST} pixels a side or more, not {x.shape[1:]} with {y.shape[1:]}"
            )
        trunk = VGG16(name="trunk")  # called twice: a picture that holds still costs no backward pass
        distance = jnp.zeros(len(x), jnp.float32)
        for stage, (ours, theirs) in enumerate(zip(trunk(x), trunk(y), strict=True)):
            weight = self.param(f"lin{stage}", with_axes(nn.initializers.ones, (None,)), ours.shape[-1:])
            difference = jnp.square(unit_channels(ours) - unit_channels(theirs))
            distance += jnp.einsum("bhwc,c->bhw", difference, weight).mean(axis=(1, 2))
        return distance


class VGG16(nn.Module):
    """What VGG16 sees before each pooling and at its end, five arrays (B,h,w,c) in float32, of pictures in [-1, 1]."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> list[Float[Array, "B H2 W2 C2"]]:
        h, taps = (x - SHIFT) / SCALE, []
        for stage, (name, width, convolutions) in enumerate(STAGES):
            if stage:
                h = nn.max_pool(h, (2, 2), strides=(2, 2))
            for i in range(convolutions):
                h = nn.relu(Conv(width, (3, 3), (None, None), name=f"{name}_{i + 1}")(h))
            taps.append(h.astype(jnp.float32))
        return taps


def unit_channels(h: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Each place's channels at length 1, where they have any: h / (|h| + 1e-10), with a gradient of 0 at h = 0."""
    square = jnp.sum(h * h, axis=-1, keepdims=True)
    some = square > 0
    return jnp.where(some, h / (jnp.sqrt(jnp.where(some, square, 1)) + 1e-10), 0)
