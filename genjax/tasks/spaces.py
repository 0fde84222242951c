"""The space that a denoiser works in: pixels as they are, or latents of an autoencoder.

What scales and what clips stands here, and nowhere else: x_0 is what the process noises, and a sample is brought back
to what the data holds.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.errors import InputError

__all__ = ["Latents", "Pixels", "Space"]


@runtime_checkable
class Space(Protocol):
    """A kind of space."""

    def to_x_0(self, image: Array) -> Array:
        """What is noised, of an image or latent of the data (B,H,W,C)."""

    def to_image(self, x_0: Array) -> Array:
        """What the data would hold, of a sample."""


@dataclass(frozen=True)
class Pixels:
    """Pixels in [-1, 1]; samples are clipped to it."""

    def to_x_0(self, image: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
        return image

    def to_image(self, x_0: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
        return jnp.clip(x_0, -1, 1)


@dataclass(frozen=True)
class Latents:
    """Latents of an autoencoder, brought to about unit variance: x_0 = (latent - shift) scale; never clipped.

    Stable Diffusion 1 has a scale of 0.18215 and no shift, Stable Diffusion 3 has 1.5305 and 0.0609 (the
    `scaling_factor` and `shift_factor` of diffusers' autoencoders).
    """

    scale: float = 1.0
    """One over the standard deviation of the latents, positive."""
    shift: float = 0.0
    """Their mean."""

    def __post_init__(self):
        if not self.scale > 0:
            raise InputError(f"scale of Latents is positive, not {self.scale}")

    def to_x_0(self, image: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
        return (image - self.shift) * self.scale

    def to_image(self, x_0: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
        return x_0 / self.scale + self.shift
