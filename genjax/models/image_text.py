"""Two towers, one for images and one for texts, into one space of unit vectors: a small CLIP (arXiv:2103.00020).

The image tower is a convolutional network that halves the picture at each stage; the text tower is the pooled vector of
a `WordEncoder`. As in CLIP the temperature of the contrastive loss is learnt, as its logarithm, and starts at 0.07.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from genjax.models.word_encoder import WordEncoder
from genjax.nn.linear import Conv, Linear
from genjax.nn.mlp import dense_init
from genjax.nn.norms import layer_norm

__all__ = ["ImageText"]

FIRST_TEMPERATURE = 0.07
# CLIP clips its logit scale at 100: nearer to zero the loss has gradients that training cannot follow.
LEAST_TEMPERATURE = 0.01


class ImageText(nn.Module):
    """Features of images and of texts whose inner product says how well they fit."""

    features: int = 128
    """Width of the space that the two share."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the stages of the image tower; each halves the sides."""
    text: WordEncoder = WordEncoder(pooled_width=128)
    """The text tower."""

    def setup(self):
        self.stages = [
            Conv(width, (3, 3), strides=2, kernel_init=dense_init, name=f"stage_{i}")
            for i, width in enumerate(self.widths)
        ]
        self.image_head = Linear(self.features, kernel_init=dense_init)
        self.text_tower = self.text.copy(name="text_tower")
        self.text_head = Linear(self.features, kernel_init=dense_init)
        self.log_temperature = self.param(
            "log_temperature", nn.initializers.constant(math.log(FIRST_TEMPERATURE)), (), jnp.float32
        )

    def __call__(
        self, images: Float[Array, "B H W C"], tokens: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"], Float[Array, ""]]:
        """Features of both, and the temperature."""
        return self.encode_image(images), self.encode_text(tokens), self.temperature()

    def encode_image(self, images: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """Unit vectors, float32."""
        x = images
        for stage in self.stages:
            x = nn.gelu(layer_norm(stage(x)))
        return _unit(self.image_head(x.reshape(len(x), -1)))

    def encode_text(self, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Unit vectors, float32."""
        return _unit(self.text_head(self.text_tower(tokens)[1]))

    def temperature(self) -> Float[Array, ""]:
        """What similarities are divided by in the loss, 0.01 or more."""
        return jnp.maximum(jnp.exp(self.log_temperature), LEAST_TEMPERATURE)


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
