"""How likely data is under a diffusion model: exactly, by its probability-flow ODE, and by the variational bound.

The ODE dx/dt = v(x, t) carries data to the prior, and densities with it (Song et al. 2021, arXiv:2011.13456, eq. 39):

    log p(x_0) = log N(x_1; 0, prior_std^2 I) + integral from 0 to 1 of div v(x_t, t) dt

with the trace of the Jacobian in full, or Hutchinson's estimate E[noise . J noise] with one noise for the whole solve.
The bound of a chain of N steps (Ho et al. 2020, arXiv:2006.11239, equation 5), whatever its variances:

    -log p(x_0) <= KL(q(x_1 | x_0) | prior) + sum over steps of KL(q(x_s | x_t, x_0) | p(x_s | x_t)) - log p(x_0 | x_t1)

and of infinitely many (Kingma et al. 2021, arXiv:2107.00630, equation 17), where the sum is an integral over time,

    E integral of -lambda' |eps - eps_hat|^2 dt,        lambda = log(alpha / sigma)

Densities are in nats per sample; bits per dimension are those of integers from 0 to levels - 1, which `dequantised`
spreads evenly over [-1, 1]: a density there owes each dimension log2(levels / 2) bits, 7 for bytes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Key

from genjax.diffusion.predictions import Denoised, step_log_variance
from genjax.diffusion.process import Process, log_snr, noised, posterior, prior_std, velocity
from genjax.errors import InputError

__all__ = [
    "Bound",
    "Divergence",
    "ExactDivergence",
    "Hutchinson",
    "LogDensity",
    "bits_per_dim",
    "chain_bound",
    "continuous_bound",
    "dequantised",
    "discretised_log_density",
    "gaussian_kl",
    "log_density",
    "step_bound",
]

# ---------------------------------------------------------------------------------------------- probability-flow ODE


@runtime_checkable
class Divergence(Protocol):
    """How the divergence of a field is found, row by row."""

    def noise(self, keys: Array | None, x: Array) -> Array | None:
        """What is drawn once for a whole solve."""

    def __call__(self, field: Callable[[Array], Array], x: Array, noise: Array | None) -> tuple[Array, Array]:
        """field(x) and its divergence (B,)."""


@dataclass(frozen=True)
class ExactDivergence:
    """The trace of the Jacobian, by a forward derivative for each dimension, 64 at a time (Song et al. 2021, D.2)."""

    def noise(self, keys: Array | None, x: Array) -> None:
        return None

    def __call__(self, field: Callable[[Array], Array], x: Array, noise: None) -> tuple[Array, Array]:
        value, moved_by = jax.linearize(field, x)
        size = x[0].size

        def entry(index):
            # Rows do not see one another, so that one direction serves all of them.
            direction = jax.nn.one_hot(index, size, dtype=x.dtype).reshape(x.shape[1:])
            return _row_sums(moved_by(jnp.broadcast_to(direction, x.shape)) * direction)

        return value, jax.lax.map(entry, jnp.arange(size), batch_size=min(size, 64)).sum(axis=0)


@dataclass(frozen=True)
class Hutchinson:
    """noise . J noise, whose mean is the divergence, by one pullback (Hutchinson 1990; Grathwohl et al. 2019)."""

    distribution: Literal["rademacher", "gaussian"] = "rademacher"
    """Of the noise: signs, which have the smallest variance, or normal numbers."""

    def __post_init__(self) -> None:
        if self.distribution not in ("rademacher", "gaussian"):
            raise InputError(f"distribution of Hutchinson is rademacher or gaussian, not {self.distribution!r}")

    def noise(self, keys: Key[Array, " B"] | None, x: Float[Array, "B *shape"]) -> Float[Array, "B *shape"]:
        if keys is None:
            raise InputError("Hutchinson's estimate of the divergence needs a key for each row")
        draw = jax.random.rademacher if self.distribution == "rademacher" else jax.random.normal
        return jax.vmap(lambda key: draw(key, x.shape[1:], x.dtype))(keys)

    def __call__(self, field: Callable[[Array], Array], x: Array, noise: Array) -> tuple[Array, Array]:
        value, pull = jax.vjp(field, x)
        return value, _row_sums(pull(noise)[0] * noise)


class LogDensity(NamedTuple):
    """log p(x_0) in nats (B,), and where the ODE carried x_0 to: x_1, of its shape."""

    log_density: Array
    latent: Array


def log_density(
    process: Process,
    denoiser: Callable[[Array, Array], Denoised],
    x_0: Float[Array, "B *shape"],
    times: Float[Array, " T"],
    *,
    divergence: Divergence = ExactDivergence(),
    keys: Key[Array, " B"] | None = None,
) -> LogDensity:
    """log p(x_0) under the probability-flow ODE, by the Runge-Kutta method of order 4 over a grid of T times.

    They increase from (nearly) 0 to 1, or to where samples start, of which the prior is then taken (`prior_std`); what
    remains below the first, 1e-5 or so, is taken for data. A denoiser that is undefined where alpha or sigma is 0 needs
    a grid that ends before. `divergence` may be an estimate, whose noise comes from `keys`, one for each row. A step
    costs four evaluations of the denoiser and of a derivative: with `ExactDivergence` of as many as a row has
    dimensions.
    """
    noise = divergence.noise(keys, x_0)
    times = jnp.asarray(times, jnp.promote_types(x_0.dtype, jnp.float32))

    def rates(x, t):
        rows = jnp.broadcast_to(t, x.shape[:1])

        def field(x):
            denoised = denoiser(x, rows)
            return velocity(process, denoised.x_0, denoised.eps, rows)

        return divergence(field, x, noise)

    def step(state, pair):
        (x, gained), (t, t_next) = state, pair
        h = t_next - t
        v_1, d_1 = rates(x, t)
        v_2, d_2 = rates(x + h / 2 * v_1, t + h / 2)
        v_3, d_3 = rates(x + h / 2 * v_2, t + h / 2)
        v_4, d_4 = rates(x + h * v_3, t_next)
        x = x + h / 6 * (v_1 + 2 * v_2 + 2 * v_3 + v_4)
        return (x, gained + h / 6 * (d_1 + 2 * d_2 + 2 * d_3 + d_4)), None

    start = (x_0, jnp.zeros(len(x_0), times.dtype))
    (x_1, gained), _ = jax.lax.scan(step, start, (times[:-1], times[1:]))
    return LogDensity(_log_normal(x_1, prior_std(process, times[-1])) + gained, x_1)


# ------------------------------------------------------------------------------------------------------ bits, integers


def dequantised(x: Float[Array, "B *shape"], keys: Key[Array, " B"], levels: int = 256) -> Float[Array, "B *shape"]:
    """Images of `levels` levels, evenly from -1 to 1, spread over bins that fill [-1, 1]: 2 (k + u) / levels - 1.

    (Theis et al. 2016, arXiv:1511.01844, section 3.1: the density of what it gives bounds the probability of x.)
    """
    k = jnp.round((x + 1) / 2 * (levels - 1))
    u = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)
    return 2 * (k + u) / levels - 1


def bits_per_dim(log_density: Float[Array, " B"], dimensions: int, levels: int = 256) -> Float[Array, " B"]:
    """Bits per dimension of integers 0 to levels - 1, from the density (nats) of their `dequantised` form in [-1, 1].

    -log2 p / dimensions + log2(levels / 2): 7 more than a density's for bytes (Song et al. 2021; 8 is for [0, 1]).
    """
    return -log_density / (dimensions * math.log(2)) + math.log2(levels / 2)


# ------------------------------------------------------------------------------------------------ variational bounds


def gaussian_kl(
    difference: Float[Array, "*shape"], log_variance: Float[Array, "*#shape"], other: Float[Array, "*#shape"]
) -> Float[Array, "*shape"]:
    """KL(N(m, e^log_variance) | N(m + difference, e^other)) in nats, elementwise (Kingma and Welling 2013)."""
    ratio = log_variance - other
    return (jnp.expm1(ratio) - ratio + jnp.square(difference) * jnp.exp(-other)) / 2


def discretised_log_density(
    x: Float[Array, "*shape"], mean: Float[Array, "*#shape"], log_std: Float[Array, "*#shape"], levels: int = 256
) -> Float[Array, "*shape"]:
    """Log-probability (nats), elementwise, of one of `levels` levels from -1 to 1 under a Gaussian cut between them.

    The two outer levels have the tails (Ho et al. 2020, equation 13). In the logarithm of the larger tail, so that it
    is finite wherever the Gaussian lies.
    """
    half, inverse_std = 1 / (levels - 1), jnp.exp(-log_std)
    low, high = (x - half - mean) * inverse_std, (x + half - mean) * inverse_std
    # The mirror image of what lies above the mean lies below it, where the difference of two tails keeps its digits.
    mirrored = low + high > 0
    low, high = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    first, last = x < -1 + half, x > 1 - half
    tail_low, tail_high = jnp.where(mirrored, last, first), jnp.where(mirrored, first, last)
    upper = jnp.where(tail_high, 0.0, log_ndtr(high))
    share = jnp.where(tail_low, 0.0, jnp.exp(jnp.where(tail_low, 0.0, log_ndtr(low) - upper)))
    return upper + jnp.log1p(-jnp.minimum(share, 1 - jnp.finfo(x.dtype).epsneg))


def step_bound(
    process: Process,
    denoised: Denoised,
    x_0: Float[Array, "B *shape"],
    x_t: Float[Array, "B *shape"],
    s: Float[Array, " B"],
    t: Float[Array, " B"],
    *,
    levels: int = 256,
) -> Float[Array, " B"]:
    """What a step from t back to s costs, in bits per dimension (Ho et al. 2020, L_t and L_0 of equation 5).

    KL(q(x_s | x_t, x_0) | p(x_s | x_t)), where p has the mean of the posterior with the denoised x_0, and the variance
    that the network learned, or else the posterior's; for s = 0 minus the log-probability of x_0 as one of `levels`
    levels in [-1, 1].
    """
    ones = (1,) * (x_0.ndim - 1)
    s, t = s.reshape(-1, *ones), t.reshape(-1, *ones)
    back = posterior(process, s, t)
    fraction = 0.0 if denoised.variance_fraction is None else denoised.variance_fraction
    of_model = step_log_variance(process, fraction, s, t)
    of_data = step_log_variance(process, 0.0, s, t)
    kl = gaussian_kl(back.of_x_0 * (denoised.x_0 - x_0), of_data, of_model)
    mean = back.of_x_0 * denoised.x_0 + back.of_x_t * x_t
    nats = jnp.where(s <= 0, -discretised_log_density(x_0, mean, of_model / 2, levels), kl)
    return _row_means(nats) / math.log(2)


class Bound(NamedTuple):
    """An upper bound on -log2 p(x_0), in bits per dimension (B,), and its three parts."""

    prior: Array
    diffusion: Array
    reconstruction: Array

    @property
    def total(self) -> Array:
        return self.prior + self.diffusion + self.reconstruction


def chain_bound(
    process: Process,
    denoiser: Callable[[Array, Array], Denoised],
    x_0: Float[Array, "B *shape"],
    keys: Key[Array, " B"],
    times: Float[Array, " T"],
    *,
    levels: int = 256,
) -> Bound:
    """The bound of the chain that goes through `times`, from data (0) to noise (1), one noise for each step and row.

    x_0 has `levels` levels from -1 to 1 (Ho et al. 2020, equation 5; Nichol and Dhariwal 2021 for learned variances).
    """
    times = jnp.asarray(times, jnp.promote_types(x_0.dtype, jnp.float32))

    def step(total, inputs):
        index, s, t = inputs
        s, t = jnp.broadcast_to(s, x_0.shape[:1]), jnp.broadcast_to(t, x_0.shape[:1])
        x_t = noised(process, x_0, _noise(keys, index, x_0), t)
        cost = step_bound(process, denoiser(x_t, t), x_0, x_t, s, t, levels=levels)
        return total + cost, cost

    index = jnp.arange(len(times) - 1)
    total, costs = jax.lax.scan(step, jnp.zeros(len(x_0), times.dtype), (index, times[:-1], times[1:]))
    return Bound(_prior_bits(process, x_0, times[-1]), total - costs[0], costs[0])


def continuous_bound(
    process: Process,
    denoiser: Callable[[Array, Array], Denoised],
    x_0: Float[Array, "B *shape"],
    keys: Key[Array, " B"],
    times: Float[Array, " T"],
    *,
    levels: int = 256,
) -> Bound:
    """The bound of a chain of infinitely many steps, by the trapezoidal rule over log-SNR, one noise for each time.

    `times` increase from a first one, at which data is read from x_t alone by the likeliest of `levels` levels
    (Kingma et al. 2021, equations 17 and 19 without its normaliser: here the cells of a Gaussian), to a last, from
    which on all is prior; log-SNR is finite at both.
    """
    times = jnp.asarray(times, jnp.promote_types(x_0.dtype, jnp.float32))

    def error(inputs):
        index, t = inputs
        rows = jnp.broadcast_to(t, x_0.shape[:1])
        eps = _noise(keys, index, x_0)
        return _row_means(jnp.square(denoiser(noised(process, x_0, eps, rows), rows).eps - eps))

    errors = jax.lax.map(error, (jnp.arange(len(times)), times))
    widths = -jnp.diff(log_snr(process, times))[:, None]
    integral = ((errors[1:] + errors[:-1]) / 2 * widths).sum(axis=0)
    noise_to_signal = jnp.exp(-log_snr(process, times[0]))
    read = x_0 + noise_to_signal * _noise(keys, 0, x_0)
    reconstruction = -_row_means(discretised_log_density(x_0, read, jnp.log(noise_to_signal), levels))
    return Bound(_prior_bits(process, x_0, times[-1]), integral / math.log(2), reconstruction / math.log(2))


def _noise(keys: Array, index: Array | int, x: Array) -> Array:
    """The noise of each row at the time of an index."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), x.shape[1:], x.dtype))(keys)


def _prior_bits(process: Process, x_0: Array, t: Array) -> Array:
    """KL of x_t | x_0 from the prior of that time, bits per dimension."""
    std = prior_std(process, t)
    kl = gaussian_kl(process.alpha(t) * x_0 / std, 2 * jnp.log(process.sigma(t) / std), jnp.zeros(()))
    return _row_means(kl) / math.log(2)


def _log_normal(x: Array, std: Array) -> Array:
    """log N(x; 0, std^2 I) of each row."""
    size = x[0].size
    return -_row_sums(jnp.square(x / std)) / 2 - size * (jnp.log(std) + math.log(2 * math.pi) / 2)


def _row_sums(x: Array) -> Array:
    return x.sum(axis=tuple(range(1, x.ndim)))


def _row_means(x: Array) -> Array:
    return x.mean(axis=tuple(range(1, x.ndim)))
