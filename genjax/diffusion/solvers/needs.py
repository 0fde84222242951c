"""What solvers need of a process, as data: where formulas divide by alpha, or take derivatives that may be infinite.

(Kingma et al. 2021, arXiv:2107.00630, section 3.1, has processes by their log-SNR; its ends are where solvers fail.)
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genjax.diffusion.process import Process, coefficients
from genjax.diffusion.solvers.integrate import Need

__all__ = ["SIGNAL_AT_START", "VELOCITY_AT_END", "VELOCITY_AT_START", "has_noise", "has_signal", "has_velocity"]

STEEPEST = 1e6
"""A slope of alpha or sigma beyond this is taken for an infinite one, which `coefficients` reads a little beside it."""


def has_signal(process: Process, t: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Whether x_t has some data in it: whether alpha / sigma is above what float32 can tell from 0."""
    return process.alpha(t) > 1e-6 * process.sigma(t)


def has_noise(process: Process, t: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Whether x_t has some noise in it: whether sigma / alpha is above what float32 can tell from 0."""
    return process.sigma(t) > 1e-6 * process.alpha(t)


def has_velocity(process: Process, t: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether alpha and sigma have finite derivatives at t."""
    c = coefficients(process, t)
    return jnp.maximum(jnp.abs(c.d_alpha), jnp.abs(c.d_sigma)) < STEEPEST


SIGNAL_AT_START = Need("data in the noise (alpha > 0) at the first time", lambda process, t, _: has_signal(process, t))
VELOCITY_AT_START = Need("a finite velocity at the first time", lambda process, t, _: has_velocity(process, t))
VELOCITY_AT_END = Need("a finite velocity at the last time", lambda process, _, t: has_velocity(process, t))
