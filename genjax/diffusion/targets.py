"""Analytic targets: data whose denoiser, score, density and flow are known at every time, under any process.

Noise makes a mixture of Gaussians a mixture of Gaussians (Song et al. 2021, arXiv:2011.13456, section 3.3, for one):

    x_0 ~ sum_k w_k N(m_k, s_k^2 I)     =>     x_t ~ sum_k w_k N(alpha m_k, v_k I),     v_k = alpha^2 s_k^2 + sigma^2

With r_k(x) the probability that x_t = x came from component k, the best denoiser and the score are

    E[eps | x_t = x] = sigma sum_k r_k (x - alpha m_k) / v_k = -sigma score(x)
    E[x_0 | x_t = x] = sum_k r_k (m_k + alpha s_k^2 (x - alpha m_k) / v_k)

and for one Gaussian the probability-flow ODE keeps (x - alpha m) / sqrt(v). With these for a network a solver, a
likelihood or a loss has nothing to err by but itself: tests and benchmarks measure that.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from genjax.diffusion.predictions import Denoised
from genjax.diffusion.process import Process, Times, like
from genjax.errors import InputError

__all__ = ["Gaussian", "Mixture"]


@dataclass(frozen=True)
class Mixture:
    """A mixture of K isotropic Gaussians in D dimensions; its rows are (B, D)."""

    means: tuple[tuple[float, ...], ...] = ((-1.0, 0.5), (1.0, 0.0), (0.2, -0.8))
    """m_k, K of D numbers."""
    stds: tuple[float, ...] = (0.2, 0.3, 0.25)
    """s_k, K numbers of at least 0; 0 is a point."""
    weights: tuple[float, ...] = (0.3, 0.5, 0.2)
    """w_k, K positive numbers that sum to 1."""

    def __post_init__(self) -> None:
        if not len(self.means) == len(self.stds) == len(self.weights) > 0:
            raise InputError(
                "means, stds and weights of Mixture are as many as there are components, "
                f"not {len(self.means)}, {len(self.stds)} and {len(self.weights)}"
            )
        if len({len(mean) for mean in self.means}) > 1:
            raise InputError("means of Mixture have as many dimensions each")
        if min(self.stds) < 0:
            raise InputError(f"stds of Mixture are 0 or more, not {self.stds}")
        if min(self.weights) <= 0 or not math.isclose(sum(self.weights), 1, rel_tol=1e-6):
            raise InputError(f"weights of Mixture are positive and sum to 1, not {self.weights}")

    def denoised(self, process: Process, x: Float[Array, "B D"], t: Times) -> Denoised:
        """E[x_0 | x_t = x] and E[eps | x_t = x]."""
        alpha, sigma, share, offset, variance = self._given(process, x, t)
        means, stds = self._arrays(x)
        x_0 = means + alpha[..., None] * (stds**2)[:, None] * offset / variance[..., None]
        eps = sigma[..., None] * offset / variance[..., None]
        return Denoised(*((share[..., None] * value).sum(axis=-2) for value in (x_0, eps)))

    def score(self, process: Process, x: Float[Array, "B D"], t: Times) -> Float[Array, "B D"]:
        """The gradient of log p(x_t = x)."""
        _, _, share, offset, variance = self._given(process, x, t)
        return -(share[..., None] * offset / variance[..., None]).sum(axis=-2)

    def log_density(self, process: Process, x: Float[Array, "B D"], t: Times) -> Float[Array, " B"]:
        """log p(x_t = x), nats; of the data itself at t = 0 of most processes."""
        return jax.nn.logsumexp(self._log_joint(process, x, t)[0], axis=-1)

    def sample(self, keys: Key[Array, " B"]) -> Float[Array, "B D"]:
        """Data, a row for each key."""

        def one(key):
            which, noise = jax.random.split(key)
            component = jax.random.categorical(which, jnp.log(jnp.asarray(self.weights)))
            normal = jax.random.normal(noise, (len(self.means[0]),))
            return jnp.asarray(self.means)[component] + jnp.asarray(self.stds)[component] * normal

        return jax.vmap(one)(keys)

    def mean(self) -> Float[np.ndarray, " D"]:
        """Of the data, float64."""
        return np.asarray(self.weights) @ np.asarray(self.means)

    def covariance(self) -> Float[np.ndarray, "D D"]:
        """Of the data, float64."""
        weights, offsets = np.asarray(self.weights), np.asarray(self.means) - self.mean()
        within = weights @ np.asarray(self.stds) ** 2
        return within * np.eye(offsets.shape[1]) + np.einsum("k,ki,kj->ij", weights, offsets, offsets)

    def _arrays(self, x: Array) -> tuple[Array, Array]:
        return jnp.asarray(self.means, x.dtype), jnp.asarray(self.stds, x.dtype)

    def _log_joint(self, process: Process, x: Array, t: Array) -> tuple[Array, ...]:
        """log(w_k p(x | k)) (B, K); alpha, sigma (B, 1); x - alpha m_k (B, K, D); v_k (B, K)."""
        time = like(t, x)
        alpha, sigma = process.alpha(time), process.sigma(time)
        means, stds = self._arrays(x)
        offset = x[:, None, :] - alpha[..., None] * means
        variance = alpha**2 * stds**2 + sigma**2
        size = x.shape[-1]
        exponent = -jnp.square(offset).sum(axis=-1) / (2 * variance)
        log_weights = jnp.log(jnp.asarray(self.weights, x.dtype))
        log_joint = log_weights + exponent - size / 2 * jnp.log(2 * math.pi * variance)
        return log_joint, alpha, sigma, offset, variance

    def _given(self, process: Process, x: Array, t: Array) -> tuple[Array, ...]:
        log_joint, alpha, sigma, offset, variance = self._log_joint(process, x, t)
        return alpha, sigma, jax.nn.softmax(log_joint, axis=-1), offset, variance


@dataclass(frozen=True)
class Gaussian:
    """D independent Gaussian dimensions; its rows are (B, D)."""

    means: tuple[float, ...] = (0.5, -0.3)
    """m, D numbers."""
    stds: tuple[float, ...] = (0.4, 0.7)
    """s, D numbers of at least 0."""

    def __post_init__(self) -> None:
        if not len(self.means) == len(self.stds) > 0:
            raise InputError(
                "means and stds of Gaussian are as many as there are dimensions, "
                f"not {len(self.means)} and {len(self.stds)}"
            )
        if min(self.stds) < 0:
            raise InputError(f"stds of Gaussian are 0 or more, not {self.stds}")

    def denoised(self, process: Process, x: Float[Array, "B D"], t: Times) -> Denoised:
        """E[x_0 | x_t = x] and E[eps | x_t = x]."""
        alpha, sigma, offset, variance = self._offset(process, x, t)
        means, stds = jnp.asarray(self.means, x.dtype), jnp.asarray(self.stds, x.dtype)
        return Denoised(x_0=means + alpha * stds**2 * offset / variance, eps=sigma * offset / variance)

    def score(self, process: Process, x: Float[Array, "B D"], t: Times) -> Float[Array, "B D"]:
        """The gradient of log p(x_t = x)."""
        _, _, offset, variance = self._offset(process, x, t)
        return -offset / variance

    def log_density(self, process: Process, x: Float[Array, "B D"], t: Times) -> Float[Array, " B"]:
        """log p(x_t = x), nats; of the data itself at t = 0 of most processes."""
        _, _, offset, variance = self._offset(process, x, t)
        return -(jnp.square(offset) / variance + jnp.log(2 * math.pi * variance)).sum(axis=-1) / 2

    def carried(self, process: Process, x: Float[Array, "B D"], start: Times, end: Times) -> Float[Array, "B D"]:
        """Where the probability-flow ODE carries x from one time to another, in closed form."""
        _, _, offset, variance = self._offset(process, x, start)
        alpha, _, _, variance_after = self._offset(process, x, end)
        return alpha * jnp.asarray(self.means, x.dtype) + offset * jnp.sqrt(variance_after / variance)

    def sample(self, keys: Key[Array, " B"]) -> Float[Array, "B D"]:
        """Data, a row for each key."""
        normal = jax.vmap(lambda key: jax.random.normal(key, (len(self.means),)))(keys)
        return jnp.asarray(self.means) + jnp.asarray(self.stds) * normal

    def mean(self) -> Float[np.ndarray, " D"]:
        """Of the data, float64."""
        return np.asarray(self.means)

    def covariance(self) -> Float[np.ndarray, "D D"]:
        """Of the data, float64."""
        return np.diag(np.asarray(self.stds) ** 2)

    def _offset(self, process: Process, x: Array, t: Array) -> tuple[Array, ...]:
        """alpha, sigma (B, 1), x - alpha m and its variance (B, D)."""
        time = like(t, x)
        alpha, sigma = process.alpha(time), process.sigma(time)
        offset = x - alpha * jnp.asarray(self.means, x.dtype)
        return alpha, sigma, offset, alpha**2 * jnp.asarray(self.stds, x.dtype) ** 2 + sigma**2
