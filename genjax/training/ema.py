"""The exponential moving average of the parameters, which is what samples are drawn with."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

__all__ = ["ema_decay", "update_ema"]


def ema_decay(updates: Int[Array, ""], longest: float) -> Array:
    """Decay of the next average after `updates` of them: min(longest, (1 + n) / (10 + n)).

    The warm-up makes the average forget its random start, so that early samples are not noise (as diffusers' EMAModel).
    """
    return jnp.minimum(longest, (1.0 + updates) / (10.0 + updates))


def update_ema(average: PyTree[Array], params: PyTree[Array], decay: Array) -> PyTree[Array]:
    """decay * average + (1 - decay) * params."""
    return jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
