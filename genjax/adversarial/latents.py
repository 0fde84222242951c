"""Latents of a generator at sampling time: truncation and interpolation of z ~ N(0, I)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.errors import InputError

__all__ = ["slerp", "truncated_normal"]


def truncated_normal(key: Key[Array, ""], shape: tuple[int, ...], limit: float) -> Float[Array, "*shape"]:
    """z ~ N(0, 1) redrawn where |z| > limit (the truncation trick of BigGAN, Brock et al. 2018, section 3.1).

    A small limit gives fewer, more typical samples; an infinite one is the plain normal. Raises InputError unless
    limit > 0.
    """
    if not limit > 0:
        raise InputError(f"latents are truncated at a limit above 0, not at {limit}")
    return jax.random.truncated_normal(key, -limit, limit, shape)


def slerp(
    a: Float[Array, "*batch Z"], b: Float[Array, "*batch Z"], t: Float[Array, "*batch"]
) -> Float[Array, "*batch Z"]:
    """Spherical interpolation from a (t = 0) to b (t = 1) at constant angular speed (Shoemake 1985; White 2016).

    (sin((1 - t) w) a + sin(t w) b) / sin w, with w the angle between a and b. Normal latents of many dimensions lie
    near a sphere; straight lines between them pass through its inside, where a generator was never trained, and
    these arcs do not. Parallel vectors are interpolated in a straight line, and so are opposite ones, between which no
    arc is shortest. `t` is a scalar or has the shape of the batch.
    """
    t = jnp.asarray(t)[..., None]
    unit_a, unit_b = a / jnp.linalg.norm(a, axis=-1, keepdims=True), b / jnp.linalg.norm(b, axis=-1, keepdims=True)
    apart, together = (jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (unit_a - unit_b, unit_a + unit_b))
    angle = 2 * jnp.arctan2(apart, together)  # arccos of the product loses half of the digits where it is near 1
    sine = jnp.sin(angle)
    straight = sine < 1e-4
    safe = jnp.where(straight, 1, sine)
    weight_a = jnp.where(straight, 1 - t, jnp.sin((1 - t) * angle) / safe)
    weight_b = jnp.where(straight, t, jnp.sin(t * angle) / safe)
    return weight_a * a + weight_b * b
