"""What a denoising network is: a Linen module that reads a noised image, its time and what it is conditioned on.

MMDiT reads features of a text, DiT and the U-Net a class or nothing; the convention of calls is one.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from jaxtyping import Array, Float, Key, PyTree

__all__ = ["DenoisingNetwork"]


class DenoisingNetwork(Protocol):
    """What predicts something of the shape of the image, or of two such shapes side by side along the channels.

    t is (B,), or (B,2) of one that sees intervals (`MeanVelocity`). One that has a field `dropout` above 0 also takes
    `dropout_keys=` (B,), a key for each row, in training.
    """

    channels: int
    """Channels of the image or latent."""

    def init(
        self, rngs: Key[Array, ""], x_t: Float[Array, "B H W C"], t: Float[Array, "B *times"], *condition: Array
    ) -> Any:
        """Fresh {"params": p}, as of any Linen module."""
        ...

    def apply(
        self,
        variables: Mapping[str, PyTree[Array]],
        x_t: Float[Array, "B H W C"],
        t: Float[Array, "B *times"],
        *condition: Array,
    ) -> Float[Array, "B H W C"] | Float[Array, "B H W 2*C"]:
        """The prediction; t in [0, 1], and each array of the condition with a row for each image."""
        ...
