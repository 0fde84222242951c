"""The activations of published networks, by the names their configs have for them."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
from flax import linen as nn
from jaxtyping import Array, Float

__all__ = ["Activation", "activation", "quick_gelu"]

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
"""`gelu`: x Phi(x), by the error function; `gelu_tanh`: its tanh form (both Hendrycks and Gimpel 2016,
arXiv:1606.08415); `quick_gelu`: x sigmoid(1.702 x), their third, which OpenAI's CLIP has."""


def activation(name: Activation) -> Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]:
    """The function of this name."""
    return _ACTIVATIONS[name]


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS = {"gelu": functools.partial(nn.gelu, approximate=False), "gelu_tanh": nn.gelu, "quick_gelu": quick_gelu}
