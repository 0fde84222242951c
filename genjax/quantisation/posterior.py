"""The bottleneck of a variational autoencoder: a code is drawn from a Gaussian that the encoder names.

    z = mean + exp(log_variance / 2) n,    n ~ N(0, I)
    KL(N(mean, variance) || N(0, I)) = (mean^2 + variance - 1 - log_variance) / 2, summed over coordinates

(Kingma and Welling 2013, arXiv:1312.6114, section 3 and appendix B.) Latent diffusion (Rombach et al. 2022) gives it a
weight of 1e-6, which keeps latents from growing and little more; log-variances are brought into [-30, 20] there and
here. Nothing is quantised: it stands here as the other way to bound what a code may say.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.errors import InputError

__all__ = ["Posterior"]

Moments = Float[Array, "*N DD"]
"""Means, and then as many log-variances, along the last axis."""


@dataclass(frozen=True)
class Posterior:
    """Gaussians of independent coordinates."""

    weight: float = 1e-6
    """What a nat of divergence costs, where the error of every number of an image costs 1 (latent diffusion's sums)."""

    def __post_init__(self):
        if not 0 <= self.weight < math.inf:
            raise InputError(f"weight of Posterior is a price, 0 or more, not {self.weight}")

    def mean(self, moments: Moments) -> Float[Array, "*N D"]:
        """The means, which are also the modes."""
        return jnp.split(moments, 2, axis=-1)[0]

    def log_variance(self, moments: Moments) -> Float[Array, "*N D"]:
        """The log-variances, in [-30, 20]."""
        return jnp.clip(jnp.split(moments, 2, axis=-1)[1], -30, 20)

    def draw(self, moments: Float[Array, "B *N DD"], keys: Key[Array, " B"]) -> Float[Array, "B *N D"]:
        """A code for each row, of the row's key."""
        mean, deviation = self.mean(moments), jnp.exp(self.log_variance(moments) / 2)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(keys)
        return mean + deviation * noise

    def divergence(self, moments: Moments) -> Float[Array, "*N"]:
        """KL from N(0, I) at each position, in nats."""
        mean, log_variance = self.mean(moments), self.log_variance(moments)
        return jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance, axis=-1) / 2
