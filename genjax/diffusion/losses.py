"""The denoising loss: the weighted squared error of a prediction at a noised sample.

    w(t) |network(inputs(x_t, t)) - target(x_0, eps, t)|^2,        x_t = alpha x_0 + sigma eps

(SD3, Esser et al. 2024, arXiv:2403.03206, equation 2 and section 2.) A prediction has more to say of its own loss where
that is not all: `LearnedVariance`, whose network learns a variance, and `MeanVelocity`, whose target is its own slope.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.predictions import Prediction
from genjax.diffusion.process import Process
from genjax.diffusion.weightings import Unweighted, Weighting, on_output

__all__ = ["denoising_loss"]


def denoising_loss(
    network: Callable[[Array, Array], Array],
    process: Process,
    prediction: Prediction,
    x_0: Float[Array, "B *shape"],
    eps: Float[Array, "B *shape"],
    t: Float[Array, " B"],
    weighting: Weighting = Unweighted(),  # noqa: B008
    *,
    keys: Key[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """The loss of each sample, in float32 at least: of most predictions the weighted mean squared error.

    The network is called with what `prediction.inputs` makes of x_t and the times t. keys: one per row, for what a
    prediction draws beside noise and time in training: `MeanVelocity` the other end of its interval.
    """

    def wide(x: Array, t: Array) -> Array:
        return _wide(network(x, t))

    weigh = partial(_weight, weighting, process)
    return prediction.loss(wide, process, x_0, eps, t, weigh, keys)


def _weight(weighting: Weighting, process: Process, prediction: Prediction, t: Array) -> Array:
    return on_output(weighting, process, prediction, _wide(t))


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
