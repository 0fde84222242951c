"""The denoising loss: the squared error of a prediction at a noised sample.

(SD3, Esser et al. 2024, arXiv:2403.03206, equation 2 and section 2.)
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.predictions import Prediction
from genjax.diffusion.process import Process, noised

__all__ = ["denoising_loss"]


def denoising_loss(
    network: Callable[[Array, Array], Array],
    process: Process,
    prediction: Prediction,
    x_0: Float[Array, "B *shape"],
    eps: Float[Array, "B *shape"],
    t: Float[Array, " B"],
) -> Float[Array, " B"]:
    """Mean squared error per sample, in float32, of network(x_t, t) against the prediction's target."""
    output = network(noised(process, x_0, eps, t), t)
    error = output.astype(jnp.float32) - prediction.target(process, x_0, eps, t)
    return jnp.square(error).mean(axis=tuple(range(1, x_0.ndim)))
