"""Noise processes: the pair (alpha, sigma) of a Gaussian path from data to noise.

Time t runs over [0, 1]; t = 0 is data and t = 1 is noise:

    x_t = alpha(t) x_0 + sigma(t) eps,        eps ~ N(0, I)
    velocity  dx_t/dt = alpha'(t) x_0 + sigma'(t) eps

A process is just the two functions; everything else follows, with derivatives by autodiff. The same path is that of an
SDE (Song et al. 2021, arXiv:2011.13456), whose log-SNR is lambda = log(alpha / sigma) (half of Kingma's, 2107.00630):

    dx = f x dt + g dw,        f = alpha' / alpha,        g^2 = 2 sigma^2 d/dt log(sigma / alpha) = -2 sigma^2 lambda'

and between two times s < t it is a Gaussian chain,

    x_t | x_s       ~ N(alpha_t / alpha_s x_s, -sigma_t^2 expm1(2 (lambda_t - lambda_s)))
    x_s | x_t, x_0  ~ N(a x_t + b x_0, -sigma_s^2 expm1(2 (lambda_t - lambda_s)))
                        a = alpha_t sigma_s^2 / (alpha_s sigma_t^2),      b = -alpha_s expm1(2 (lambda_t - lambda_s))

which loses no digits where 1 - alpha^2 or a difference of variances would.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = [
    "SDE",
    "Coefficients",
    "Posterior",
    "Process",
    "RectifiedFlow",
    "Times",
    "Transition",
    "coefficients",
    "like",
    "log_snr",
    "noised",
    "pace",
    "posterior",
    "prior_std",
    "sde",
    "time_of_log_snr",
    "transition",
    "velocity",
]

Times = Float[Array, " B"] | Float[Array, ""]
"""A time for each sample, or one for all."""


@runtime_checkable
class Process(Protocol):
    """What a noise process is: two functions of time, elementwise, whose log-SNR log(alpha / sigma) decreases.

    Derivatives are taken of them, at time 0 too: what vanishes there must do so without cancellation, as
    sigma = sqrt(-expm1(2 log(alpha))) does and sqrt(1 - alpha^2) does not.
    """

    def alpha(self, t: Array) -> Array: ...

    def sigma(self, t: Array) -> Array: ...


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight lines from data to noise: alpha = 1 - t, sigma = t (Liu et al. 2022; Stable Diffusion 3)."""

    def alpha(self, t: Array) -> Array:
        return 1.0 - t

    def sigma(self, t: Array) -> Array:
        return 1.0 * t


class Coefficients(NamedTuple):
    """alpha, sigma and their time derivatives, of the shape of the time they were taken at."""

    alpha: Array
    sigma: Array
    d_alpha: Array
    d_sigma: Array


def coefficients(process: Process, t: Float[Array, "*shape"]) -> Coefficients:
    """The process and its derivatives at time t.

    Time 0 is read as the square root of the smallest normal number (1e-19 in float32): where the slope of sigma is
    infinite, as with variance-preserving processes, what is made of it has its limit and is no 0 * inf.
    """
    t = jnp.asarray(t)
    t = jnp.maximum(t, jnp.sqrt(jnp.finfo(t.dtype).tiny).astype(t.dtype))
    ones = jnp.ones_like(t)
    alpha, d_alpha = jax.jvp(process.alpha, (t,), (ones,))
    sigma, d_sigma = jax.jvp(process.sigma, (t,), (ones,))
    return Coefficients(alpha, sigma, d_alpha, d_sigma)


def noised(
    process: Process, x_0: Float[Array, "B *shape"], eps: Float[Array, "B *shape"], t: Times
) -> Float[Array, "B *shape"]:
    """x_t = alpha(t) x_0 + sigma(t) eps, with a time (B,) for each sample, or one time () for all."""
    t = like(t, x_0)
    return process.alpha(t) * x_0 + process.sigma(t) * eps


def velocity(
    process: Process, x_0: Float[Array, "B *shape"], eps: Float[Array, "B *shape"], t: Times
) -> Float[Array, "B *shape"]:
    """dx_t/dt = alpha'(t) x_0 + sigma'(t) eps, along the path through (x_0, eps)."""
    c = coefficients(process, like(t, x_0))
    return c.d_alpha * x_0 + c.d_sigma * eps


def prior_std(process: Process, t: float | Float[Array, ""] = 1.0) -> Float[Array, ""]:
    """Standard deviation of the Gaussian from which samples start at time t, the first of their grid.

    It is that of x_t where the data has unit variance, sqrt(alpha^2 + sigma^2). At t = 1 that is 1 where variance is
    preserved and for a rectified flow, to 2e-5 for sub-VP; for VE and EDM it is sigma_max, to 1 / (2 sigma_max^2) of
    it. Data of mean 0 and another variance s^2 has sqrt(alpha^2 s^2 + sigma^2): what data of another mean or variance
    leaves at t is the error of the prior, and grows as a path starts earlier.
    """
    t = jnp.asarray(t, jnp.result_type(float))
    return jnp.hypot(process.alpha(t), process.sigma(t))


# ------------------------------------------------------------------------------------------------------------ log-SNR


def log_snr(process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """lambda(t) = log(alpha / sigma), half of the log signal-to-noise ratio; infinite at the ends of many a path."""
    return jnp.log(process.alpha(t)) - jnp.log(process.sigma(t))


def pace(process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """-lambda'(t) >= 0, by how much log(alpha / sigma) falls in a unit of time (Kingma et al. 2021, section 3)."""
    c = coefficients(process, t)
    return c.d_sigma / c.sigma - c.d_alpha / c.alpha


def time_of_log_snr(process: Process, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The time t in [0, 1] at which log(alpha / sigma) has the value `log_snr`, by bisection, to the last digits of t.

    What no time has gives the nearest end, 0 above and 1 below. Differentiable: dt = d log_snr / lambda'(t).
    """
    wanted = jnp.asarray(log_snr)
    return _time(process, wanted.astype(jnp.promote_types(wanted.dtype, jnp.float32)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _time(process: Process, wanted: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    def halve(bracket, _):
        low, high = bracket
        middle = (low + high) / 2
        too_noisy = log_snr(process, middle) < wanted
        return (jnp.where(too_noisy, low, middle), jnp.where(too_noisy, middle, high)), None

    ends = jnp.zeros_like(wanted), jnp.ones_like(wanted)
    # More halvings than a number has digits, for the digits of a time near 0 begin late.
    (low, high), _ = jax.lax.scan(halve, ends, length=2 * jnp.finfo(wanted.dtype).nmant)
    t = jnp.where(log_snr(process, ends[1]) >= wanted, 1.0, (low + high) / 2)
    return jnp.where(log_snr(process, ends[0]) <= wanted, 0.0, t)


@_time.defjvp
def _time_and_tangent(process, primals, tangents):
    t = _time(process, *primals)
    return t, -tangents[0] / pace(process, t)


# ------------------------------------------------------------------------------------------------------ SDE and chain


class SDE(NamedTuple):
    """dx = drift x dt + sqrt(squared_diffusion) dw, of the shape of the time they were taken at."""

    drift: Array
    squared_diffusion: Array


def sde(process: Process, t: Float[Array, "*shape"]) -> SDE:
    """The linear SDE whose marginals are those of the process (Song et al. 2021, section 3; Kingma et al. 2021).

    Its limit at t = 0; infinite where alpha is 0, as at t = 1 of a rectified flow.
    """
    c = coefficients(process, t)
    drift = c.d_alpha / c.alpha
    return SDE(drift, 2 * c.sigma * (c.d_sigma - c.sigma * drift))


class Transition(NamedTuple):
    """x_t | x_s ~ N(scale x_s, variance I)."""

    scale: Array
    variance: Array


def transition(process: Process, s: Float[Array, "*shape"], t: Float[Array, "*shape"]) -> Transition:
    """From time s to a later time t; the variance of one step of DDPM is its beta."""
    variance = -(process.sigma(t) ** 2) * jnp.expm1(2 * (log_snr(process, t) - log_snr(process, s)))
    return Transition(process.alpha(t) / process.alpha(s), variance)


class Posterior(NamedTuple):
    """x_s | x_t, x_0 ~ N(of_x_t x_t + of_x_0 x_0, variance I); log_variance is -inf where s = 0 is data."""

    of_x_t: Array
    of_x_0: Array
    variance: Array
    log_variance: Array


def posterior(process: Process, s: Float[Array, "*shape"], t: Float[Array, "*shape"]) -> Posterior:
    """Back from time t to an earlier time s, the data known (DDPM, Ho et al. 2020, equations 6 and 7)."""
    lost = -jnp.expm1(2 * (log_snr(process, t) - log_snr(process, s)))
    alpha_s, sigma_s, sigma_t = process.alpha(s), process.sigma(s), process.sigma(t)
    return Posterior(
        of_x_t=process.alpha(t) / alpha_s * (sigma_s / sigma_t) ** 2,
        of_x_0=alpha_s * lost,
        variance=sigma_s**2 * lost,
        log_variance=2 * jnp.log(sigma_s) + jnp.log(lost),
    )


def like(t: Times, x: Float[Array, "B *shape"]) -> Float[Array, "*ones"]:
    """Times (B,), or one time (), with the axes that make them broadcast against x."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
