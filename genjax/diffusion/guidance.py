"""Guidance: functions from denoisers to denoisers. A denoiser here is (x_t, t, condition) -> prediction."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

__all__ = ["ConditionalDenoiser", "classifier_free_guidance"]

ConditionalDenoiser = Callable[[Array, Array, PyTree], Array]


def classifier_free_guidance(
    denoiser: ConditionalDenoiser, unconditional: PyTree[Array, "C"], scale: float | Float[Array, ""]
) -> ConditionalDenoiser:
    """u + scale * (c - u) of the conditional and unconditional predictions (Ho and Salimans 2022).

    `scale` is the w of SD3 and diffusers: 1 is no guidance (call `denoiser` itself: it costs half), 0 is
    unconditional. `unconditional` has the tree and shapes of one batch of conditions. Both predictions come from one
    forward pass of twice the batch; any affine prediction may be guided, as the combination commutes with conversion.
    """

    def guided(x_t: Float[Array, "B *shape"], t: Float[Array, " B"], condition: PyTree[Array, "C"]) -> Array:
        both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), condition, unconditional)
        prediction = denoiser(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both)
        conditional, free = jnp.split(prediction, 2)
        return free + scale * (conditional - free)

    return guided
