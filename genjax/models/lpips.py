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

__all__ = ["LPIPS", "unit_channels"]

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
        h = (jnp.concatenate([x, y]) - SHIFT) / SCALE
        distance = jnp.zeros(len(x), jnp.float32)
        for stage, (name, width, convolutions) in enumerate(STAGES):
            if stage:
                h = nn.max_pool(h, (2, 2), strides=(2, 2))
            for i in range(convolutions):
                h = nn.relu(Conv(width, (3, 3), (None, None), name=f"{name}_{i + 1}")(h))
            ours, theirs = jnp.split(unit_channels(h.astype(jnp.float32)), 2)
            weight = self.param(f"lin{stage}", with_axes(nn.initializers.ones, (None,)), (width,))
            distance += jnp.einsum("bhwc,c->bhw", jnp.square(ours - theirs), weight).mean(axis=(1, 2))
        return distance


def unit_channels(h: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Each place's channels at length 1, where they have any: h / (|h| + 1e-10), with a gradient of 0 at h = 0."""
    square = jnp.sum(h * h, axis=-1, keepdims=True)
    some = square > 0
    return jnp.where(some, h / (jnp.sqrt(jnp.where(some, square, 1)) + 1e-10), 0)
