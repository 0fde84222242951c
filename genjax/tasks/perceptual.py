"""What pictures look like to a network that was trained to recognise something: a loss beside that of pixels.

    d(x, y) = mean over taps of mean over places of |f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)||^2

The network holds still, and its weights always come from somewhere: a random one says something too, and nobody notices
that it is not what was meant. So there is no default. A figure that is taken by the same network says nothing then.
"""

from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from genjax.errors import InputError
from genjax.interop.lpips import from_torch
from genjax.interop.trees import read_flat
from genjax.models.lpips import LPIPS, unit_channels
from genjax.models.noisy_classifier import NoisyClassifier
from genjax.runs.source import Source

__all__ = ["ClassifierFeatures", "Perceptual", "PublishedLPIPS"]


class Perceptual(Protocol):
    """A kind of likeness."""

    weight: float
    """What it counts beside the error of pixels."""

    def source(self) -> Source:
        """Where the weights come from."""

    def init(self, key: Key[Array, ""], image: Float[Array, "B H W C"]) -> PyTree[Array]:
        """Weights of the same names and shapes."""

    def distance(
        self, params: PyTree[Array], x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]
    ) -> Float[Array, " B"]:
        """d of each pair of pictures in [-1, 1]."""


@dataclass(frozen=True)
class ClassifierFeatures:
    """By a classifier that configs/classifier.py has trained, at time 0, where pictures have no noise."""

    path: str = ""
    """Its run directory."""
    model: NoisyClassifier = field(default_factory=NoisyClassifier)
    """As in that run."""
    weight: float = 1.0
    """What it counts beside the error of pixels."""

    def source(self) -> Source:
        if not self.path:
            raise InputError("path of ClassifierFeatures is the run of a classifier (configs/classifier.py)")
        return Source(self.path, part="model")

    def init(self, key: Key[Array, ""], image: Float[Array, "B H W C"]) -> PyTree[Array]:
        return self.model.init(key, image, jnp.zeros(len(image)))["params"]

    def distance(
        self, params: PyTree[Array], x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]
    ) -> Float[Array, " B"]:
        pairs = list(zip(self._taps(params, x), self._taps(params, y), strict=True))
        unlike = (jnp.square(unit_channels(ours) - unit_channels(theirs)).sum(axis=-1) for ours, theirs in pairs)
        return sum(each.mean(axis=(1, 2)) for each in unlike) / len(pairs)

    def _taps(self, params: PyTree[Array], x: Float[Array, "B H W C"]) -> list[Float[Array, "B H2 W2 C2"]]:
        """What each residual block gives, float32."""
        _, seen = self.model.apply(
            {"params": params},
            x,
            jnp.zeros(len(x), x.dtype),
            capture_intermediates=lambda module, method: _is_tap(module) and method == "__call__",
            mutable="intermediates",
        )
        return [tap.astype(jnp.float32) for tap in jax.tree.leaves(seen["intermediates"])]


def _is_tap(module: nn.Module) -> bool:
    return module.name is not None and module.name.startswith("residual_")


@dataclass(frozen=True)
class PublishedLPIPS:
    """By VGG16 with the published heads (Zhang et al. 2018), for colour pictures of 16 pixels a side or more."""

    path: str = ""
    """A .safetensors file of the convolutions and the heads, under torchvision's or lpips' names."""
    weight: float = 1.0
    """What it counts beside the error of pixels; 1 in VQGAN."""

    def source(self) -> Source:
        if not self.path:
            raise InputError("path of PublishedLPIPS is a .safetensors file with VGG16 and the heads of LPIPS")
        return _File(self.path)

    def init(self, key: Key[Array, ""], image: Float[Array, "B H W C"]) -> PyTree[Array]:
        return LPIPS().init(key, image, image)["params"]

    def distance(
        self, params: PyTree[Array], x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]
    ) -> Float[Array, " B"]:
        return LPIPS().apply({"params": params}, x, y)


class _File(Source):
    """A file in another project's layout."""

    def read(self) -> PyTree[Array]:
        return from_torch(read_flat(self.path)[0])
