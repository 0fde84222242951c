"""How heavy an adversarial term is beside a reconstruction: as its gradient is light (VQGAN, Esser et al. 2021).

    lambda = |grad_K L_rec| / (|grad_K L_adv| + delta),    at most 1e4,    K the last kernel of the decoder

(arXiv:2012.09841, equation 7.) Both gradients need the inputs of the last layer once, and a backward pass each from
the losses to the picture: `kernel_gradients` takes the two as functions of that kernel alone. They are means over a
batch, sums over its rows and devices: add the gradients up first, and ask for the weight of the sums.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["adaptive_weight", "kernel_gradients"]

Kernel = Float[Array, "*window inputs outputs"]


def kernel_gradients(
    losses: Callable[[Array], tuple[Float[Array, ""], Float[Array, ""]]], kernel: Kernel
) -> tuple[Kernel, Kernel]:
    """The gradients of two losses, (reconstruction, adversarial), by the kernel; no gradient goes through them."""
    values, pullback = jax.vjp(losses, jax.lax.stop_gradient(kernel))
    one, zero = (jnp.full_like(values[0], number) for number in (1, 0))
    return tuple(jax.lax.stop_gradient(pullback(pair)[0]) for pair in ((one, zero), (zero, one)))


def adaptive_weight(
    reconstruction: Kernel, adversarial: Kernel, *, delta: float = 1e-4, most: float = 1e4
) -> Float[Array, ""]:
    """lambda, in [0, most], of the gradients of a whole batch; delta is 1e-4 in their code, 1e-6 in the paper."""
    ratio = jnp.linalg.norm(reconstruction) / (jnp.linalg.norm(adversarial) + delta)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0, most))
