"""What a network predicts and sees, and how it turns into (x_0, eps), the hub through which all predictions convert.

(Salimans and Ho 2022, arXiv:2202.00512, section 4, has the conversions for alpha^2 + sigma^2 = 1.)
A prediction is linear in the hub, and so is x_t = alpha x_0 + sigma eps; two equations in two unknowns:

    X0              x_0                                eps = (x_t - alpha x_0) / sigma
    Eps             eps                                x_0 = (x_t - sigma eps) / alpha
    Score           -eps / sigma                       eps = -sigma score
    V               alpha eps - sigma x_0              x_0 = (alpha x_t - sigma v) / n
                                                       eps = (sigma x_t + alpha v) / n
                                                         n = alpha^2 + sigma^2
    Velocity        alpha' x_0 + sigma' eps            x_0 = (sigma' x_t - sigma velocity) / d
                                                       eps = (alpha velocity - alpha' x_t) / d
                                                         d = alpha sigma' - alpha' sigma
    Preconditioned  F = (sigma x_0 - alpha s^2 eps) / (s m)
                                                       x_0 = (alpha s^2 x_t + sigma s m F) / m^2
                                                       eps = (sigma x_t - alpha s m F) / m^2
                                                         m^2 = sigma^2 + alpha^2 s^2,  s = sigma_data

`LearnedVariance` is one of these and the variance of a step back; `MeanVelocity` is that of a whole step.

X0 leaves eps undetermined where sigma = 0, Eps and Score leave x_0 where alpha = 0; V, Velocity and Preconditioned hold
at both ends of a path. Those are their `needs`, by which `solvers.check_prediction` refuses a path that ends there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.process import (
    Process,
    Times,
    coefficients,
    like,
    log_snr,
    noised,
    posterior,
    transition,
    velocity,
)
from genjax.errors import InputError

__all__ = [
    "V",
    "X0",
    "Denoised",
    "Eps",
    "Inputs",
    "Network",
    "Part",
    "Prediction",
    "Preconditioned",
    "Score",
    "SquaredError",
    "Velocity",
    "Weigh",
    "hub_slopes",
    "squared_error",
    "step_log_variance",
]


class Denoised(NamedTuple):
    """An estimate of the data and of the noise that x_t was made of; each has the shape of x_t."""

    x_0: Array
    eps: Array
    variance_fraction: Array | None = None
    """Where it is learned, how far the log-variance of a step back is from the posterior's to the transition's: see
    `step_log_variance`."""


class Inputs(NamedTuple):
    """What a network sees of x_t (the same shape) and of t (B,)."""

    x: Array
    t: Array


Network = Callable[[Array, Array], Array]
"""From what `inputs` gives to the network's output, in float32 at least."""

Weigh = Callable[["Prediction", Array], Array]
"""The weight (B,) on the squared error of what a prediction's network says, at times (B,)."""

Part = Literal["data", "noise"]
"""What x_t is made of, and may have none of at an end of a path: data where alpha = 0, noise where sigma = 0."""


@runtime_checkable
class Prediction(Protocol):
    """A kind of network output, and of what the network sees; its (x_0, eps) is defined where x_t has its `needs`."""

    needs: tuple[Part, ...]

    def inputs(self, process: Process, x_t: Array, t: Array) -> Inputs:
        """What the network is called with at x_t, t."""

    def target(self, process: Process, x_0: Array, eps: Array, t: Array) -> Array:
        """What the network should say at x_t = alpha x_0 + sigma eps."""

    def denoised(self, process: Process, output: Array, x_t: Array, t: Array) -> Denoised:
        """The hub (x_0, eps) that the network's output stands for."""

    def loss(
        self, network: Network, process: Process, x_0: Array, eps: Array, t: Array, weigh: Weigh, keys: Array | None
    ) -> Array:
        """The loss of each row (B,); `keys` (B,) are for what else is drawn of a row in training."""


class SquaredError:
    """What the loss of most predictions is."""

    def loss(
        self,
        network: Network,
        process: Process,
        x_0: Float[Array, "B *shape"],
        eps: Float[Array, "B *shape"],
        t: Float[Array, " B"],
        weigh: Weigh,
        keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, " B"]:
        """The weighted squared error of the output (B,)."""
        output = network(*self.inputs(process, noised(process, x_0, eps, t), t))
        return squared_error(output - self.target(process, x_0, eps, t)) * weigh(self, t)


def squared_error(error: Float[Array, "B *shape"]) -> Float[Array, " B"]:
    """The mean square of each row."""
    return jnp.square(error).mean(axis=tuple(range(1, error.ndim)))


@dataclass(frozen=True)
class _Plain(SquaredError):
    """A network that sees x_t and t as they are, or nearly so."""

    unit_inputs: bool = False
    """Whether the network sees x_t / sqrt(alpha^2 + sigma^2), which it needs where noise explodes."""
    time_offset: float = 0.0
    """Added to the t that the network sees: -1/1000 where it counts DDPM's timesteps from 0, as released ones do."""

    def inputs(self, process: Process, x_t: Array, t: Times) -> Inputs:
        time = like(t, x_t)
        scale = jnp.hypot(process.alpha(time), process.sigma(time)) if self.unit_inputs else 1
        return Inputs(x_t / scale, t + self.time_offset)


@dataclass(frozen=True)
class X0(_Plain):
    """The network predicts the data (what Salimans and Ho 2022 call x)."""

    needs: ClassVar[tuple[Part, ...]] = ("noise",)

    def target(self, process: Process, x_0: Array, eps: Array, t: Times) -> Array:
        return x_0

    def denoised(self, process: Process, output: Array, x_t: Array, t: Times) -> Denoised:
        t = like(t, x_t)
        return Denoised(x_0=output, eps=(x_t - process.alpha(t) * output) / process.sigma(t))


@dataclass(frozen=True)
class Eps(_Plain):
    """The network predicts the noise (DDPM, Ho et al. 2020, equation 14)."""

    needs: ClassVar[tuple[Part, ...]] = ("data",)

    def target(self, process: Process, x_0: Array, eps: Array, t: Times) -> Array:
        return eps

    def denoised(self, process: Process, output: Array, x_t: Array, t: Times) -> Denoised:
        t = like(t, x_t)
        return Denoised(x_0=(x_t - process.sigma(t) * output) / process.alpha(t), eps=output)


@dataclass(frozen=True)
class Score(_Plain):
    """The network predicts the score of x_t given x_0, -eps / sigma (Song et al. 2021, arXiv:2011.13456)."""

    needs: ClassVar[tuple[Part, ...]] = ("data",)

    def target(self, process: Process, x_0: Array, eps: Array, t: Times) -> Array:
        return -eps / process.sigma(like(t, x_0))

    def denoised(self, process: Process, output: Array, x_t: Array, t: Times) -> Denoised:
        return Eps().denoised(process, -process.sigma(like(t, x_t)) * output, x_t, t)


@dataclass(frozen=True)
class V(_Plain):
    """The network predicts v = alpha eps - sigma x_0 (Salimans and Ho 2022, appendix D), under any process."""

    needs: ClassVar[tuple[Part, ...]] = ()

    def target(self, process: Process, x_0: Array, eps: Array, t: Times) -> Array:
        t = like(t, x_0)
        return process.alpha(t) * eps - process.sigma(t) * x_0

    def denoised(self, process: Process, output: Array, x_t: Array, t: Times) -> Denoised:
        t = like(t, x_t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        norm = alpha**2 + sigma**2
        return Denoised(x_0=(alpha * x_t - sigma * output) / norm, eps=(sigma * x_t + alpha * output) / norm)


@dataclass(frozen=True)
class Velocity(_Plain):
    """The network predicts dx_t/dt; for a rectified flow eps - x_0 (SD3, equation 13 and before)."""

    needs: ClassVar[tuple[Part, ...]] = ()

    def target(self, process: Process, x_0: Array, eps: Array, t: Times) -> Array:
        return velocity(process, x_0, eps, t)

    def denoised(self, process: Process, output: Array, x_t: Array, t: Times) -> Denoised:
        c = coefficients(process, like(t, x_t))
        determinant = c.alpha * c.d_sigma - c.d_alpha * c.sigma
        return Denoised(
            x_0=(c.d_sigma * x_t - c.sigma * output) / determinant,
            eps=(c.alpha * output - c.d_alpha * x_t) / determinant,
        )


@dataclass(frozen=True)
class Preconditioned(SquaredError):
    """EDM's F, between x_0 and eps, with inputs and targets of unit variance (Karras et al. 2022, equations 7 and 8).

    x_0 = c_skip x + c_out F(c_in x, c_noise), where x = x_t / alpha is the data with noise sigma / alpha:

        c_skip = s^2 / (sigma^2 + s^2)          c_out   = sigma s / sqrt(sigma^2 + s^2)
        c_in   = 1 / sqrt(sigma^2 + s^2)        c_noise = log(sigma) / 4

    For s = 1 and a process that preserves variance F is -v. At the ends of a path, where log(sigma) may be infinite,
    the network sees that of a noise of e^-20 or e^20.
    """

    sigma_data: float = 0.5
    """s, the standard deviation of the data."""

    needs: ClassVar[tuple[Part, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise InputError(f"sigma_data of Preconditioned is positive, not {self.sigma_data}")

    def inputs(self, process: Process, x_t: Array, t: Times) -> Inputs:
        _, _, m = self._alpha_sigma_m(process, like(t, x_t))
        return Inputs(x_t / m, jnp.clip(-log_snr(process, t), -20, 20) / 4)

    def target(self, process: Process, x_0: Array, eps: Array, t: Times) -> Array:
        alpha, sigma, m = self._alpha_sigma_m(process, like(t, x_0))
        return (sigma * x_0 - alpha * self.sigma_data**2 * eps) / (self.sigma_data * m)

    def denoised(self, process: Process, output: Array, x_t: Array, t: Times) -> Denoised:
        alpha, sigma, m = self._alpha_sigma_m(process, like(t, x_t))
        unit, s = x_t / m, self.sigma_data
        return Denoised(x_0=s * (alpha * s * unit + sigma * output) / m, eps=(sigma * unit - alpha * s * output) / m)

    def _alpha_sigma_m(self, process: Process, t: Array) -> tuple[Array, Array, Array]:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha, sigma, jnp.hypot(sigma, alpha * self.sigma_data)


def step_log_variance(
    process: Process, fraction: Float[Array, "*shape"] | float, s: Float[Array, "*#shape"], t: Float[Array, "*#shape"]
) -> Float[Array, "*shape"]:
    """Log-variance of a step from time t back to s: the posterior's for a fraction of 0, the transition's for 1.

    (Nichol and Dhariwal 2021, equation 15.) A step to s = 0, whose posterior has no variance, takes that of the step
    before, from 2 t to t, as their code does.
    """
    s, t = jnp.asarray(s), jnp.asarray(t)
    to_data = s <= 0
    lower = posterior(process, jnp.where(to_data, t, s), jnp.where(to_data, jnp.minimum(2 * t, 1), t)).log_variance
    upper = jnp.log(transition(process, s, t).variance)
    return fraction * upper + (1 - fraction) * lower


def hub_slopes(
    process: Process, prediction: Prediction, t: Float[Array, " B"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """How much x_0 and eps move when the network's output moves by 1, at times t.

    The squared error of x_0 is the first, squared, times that of the output; of eps, the second.
    """
    zero = jnp.zeros((len(t), 1))
    zero = zero.astype(jnp.promote_types(t.dtype, zero.dtype))
    _, slopes = jax.jvp(
        lambda output: prediction.denoised(process, output, zero, t)[:2], (zero,), (jnp.ones_like(zero),)
    )
    return slopes[0][:, 0], slopes[1][:, 0]
