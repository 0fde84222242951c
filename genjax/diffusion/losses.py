"""The denoising loss: the weighted squared error of a prediction at a noised sample.

    w(t) |network(inputs(x_t, t)) - target(x_0, eps, t)|^2,        x_t = alpha x_0 + sigma eps

(SD3, Esser et al. 2024, arXiv:2403.03206, equation 2 and section 2.) A network that learns its variance has a bound on
the likelihood beside it, the hybrid loss of Nichol and Dhariwal 2021 (arXiv:2102.09672, equation 16):

    L = L_simple + 0.001 L_vlb,        L_vlb = sum over steps of KL(q(x_s | x_t, x_0) | p(x_s | x_t))

in bits per dimension. The second moves the variance alone: no gradient goes through the mean. One step stands for the
sum, times their number.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.likelihood import step_bound
from genjax.diffusion.predictions import LearnedVariance, Prediction
from genjax.diffusion.process import Process, noised
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
) -> Float[Array, " B"]:
    """Weighted mean squared error per sample, in float32 at least, of the network against the prediction's target.

    The network is called with what `prediction.inputs` makes of x_t and the times t. Of a `LearnedVariance`, whose
    network has twice the channels, it is the hybrid loss.
    """
    x_t = noised(process, x_0, eps, t)
    output = _wide(network(*prediction.inputs(process, x_t, t)))
    learned = isinstance(prediction, LearnedVariance)
    mean, variance = jnp.split(output, 2, axis=-1) if learned else (output, None)
    error = mean - prediction.target(process, x_0, eps, t)
    loss = jnp.square(error).mean(axis=tuple(range(1, x_0.ndim)))
    loss = loss * on_output(weighting, process, prediction, _wide(t))
    if learned and prediction.vlb_weight:
        fixed_mean = jnp.concatenate([jax.lax.stop_gradient(mean), variance], axis=-1)
        denoised = prediction.denoised(process, fixed_mean, x_t, t)
        # A step that ends nearer to the data than half of one ends there: its KL would be as large as it likes.
        before = jnp.where(t < 1.5 / prediction.steps, 0, t - 1 / prediction.steps)
        bound = step_bound(process, denoised, x_0, x_t, before, t, levels=prediction.levels)
        loss = loss + prediction.vlb_weight * prediction.steps * bound
    return loss


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
