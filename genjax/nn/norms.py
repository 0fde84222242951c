"""Normalisations, with statistics in float32 whatever the compute type."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def layer_norm(x: Float[Array, "*batch D"], *, epsilon: float = 1e-6) -> Float[Array, "*batch D"]:
    """LayerNorm without affine parameters (Ba et al. 2016), as before every adaLN modulation."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis (Zhang and Sennrich 2019); as qk-norm it runs over each head's width."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        normalised = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + self.epsilon)
        return (normalised * scale).astype(x.dtype)
