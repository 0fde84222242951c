"""Weightings of the denoising loss over time.

The squared errors of x_0, of eps and of any network output are the same but for factors of time,

    |x_0 error|^2 = (dx_0 / doutput)^2 |output error|^2
    |eps error|^2 = SNR |x_0 error|^2,                          SNR = alpha^2 / sigma^2

so that a weighting says on which of them it is (its basis), and is the same weighting for every prediction:

    Unweighted   1 on the output
    SNR          SNR on x_0: 1 on eps                                     Ho et al. 2020, L_simple
    MinSNR       min(SNR, gamma) on x_0, min(1, gamma / SNR) on eps,      Hang et al. 2023, arXiv:2303.09556
                 min(SNR, gamma) / (SNR + 1) on v
    EDMWeighting (sigma^2 + s^2) / (sigma s)^2 on x_0 of noise sigma / alpha: 1 on F     Karras et al. 2022, equation 8
    Likelihood   g^2 / (2 sigma^2) = -lambda' on eps, g^2 / 2 on the score     Song et al. 2021, arXiv:2101.09258
    Sigmoid      -lambda' sigmoid(bias - log SNR) on eps                  Kingma and Gao 2023; Hoogeboom et al. 2024

lambda' is the slope in time of log(alpha / sigma), half of that of log SNR. The last two weigh log-SNR, whatever the
process and its pace: their integral over time is one over log-SNR.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.predictions import Prediction, hub_slopes
from genjax.diffusion.process import Process, coefficients, log_snr, pace
from genjax.errors import InputError

__all__ = ["SNR", "EDMWeighting", "Likelihood", "MinSNR", "Sigmoid", "Unweighted", "Weighting", "on_output"]

Basis = Literal["output", "x_0", "eps"]


@runtime_checkable
class Weighting(Protocol):
    """A weight (B,) at each time t (B,) on the squared error that `basis` names."""

    basis: ClassVar[Basis]

    def weight(self, process: Process, t: Array) -> Array: ...


def on_output(
    weighting: Weighting, process: Process, prediction: Prediction, t: Float[Array, " B"]
) -> Float[Array, " B"]:
    """The weight on the squared error of the network's output that is `weighting` on its own basis.

    Of a `LearnedVariance` the prediction is that of its mean.
    """
    weight = weighting.weight(process, t)
    if weighting.basis == "output":
        return weight
    x_0, eps = hub_slopes(process, prediction, t)
    return weight * jnp.square(x_0 if weighting.basis == "x_0" else eps)


@dataclass(frozen=True)
class Unweighted:
    """1 on whatever the network says: the loss of SD3 for velocities, of DDPM for eps, of EDM for F (2022)."""

    basis: ClassVar[Basis] = "output"

    def weight(self, process: Process, t: Float[Array, " B"]) -> Float[Array, " B"]:
        return jnp.ones_like(t)


@dataclass(frozen=True)
class SNR:
    """alpha^2 / sigma^2 on x_0, which is 1 on eps: L_simple (Ho et al. 2020, equation 14)."""

    basis: ClassVar[Basis] = "eps"

    def weight(self, process: Process, t: Float[Array, " B"]) -> Float[Array, " B"]:
        return jnp.ones_like(t)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on x_0, which is min(1, gamma / SNR) on eps (Hang et al. 2023, section 3.4)."""

    gamma: float = 5.0
    """The largest weight on x_0."""

    basis: ClassVar[Basis] = "eps"

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise InputError(f"gamma of MinSNR is positive, not {self.gamma}")

    def weight(self, process: Process, t: Float[Array, " B"]) -> Float[Array, " B"]:
        c = coefficients(process, t)
        return jnp.minimum(1, self.gamma * jnp.square(c.sigma / c.alpha))


@dataclass(frozen=True)
class EDMWeighting:
    """1 / c_out^2 on x_0, which is 1 on F of the same sigma_data (Karras et al. 2022, equation 8)."""

    sigma_data: float = 0.5
    """Standard deviation of the data."""

    basis: ClassVar[Basis] = "x_0"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise InputError(f"sigma_data of EDMWeighting is positive, not {self.sigma_data}")

    def weight(self, process: Process, t: Float[Array, " B"]) -> Float[Array, " B"]:
        c = coefficients(process, t)
        return 1 / self.sigma_data**2 + jnp.square(c.alpha / c.sigma)


@dataclass(frozen=True)
class Likelihood:
    """-lambda' on eps: the mean loss over uniform times is the continuous bound on -log p, in nats per dimension.

    But for its prior and reconstruction, which no network changes (Song et al. 2021, arXiv:2101.09258, equation 8;
    Kingma et al. 2021, arXiv:2107.00630, equation 17). It is infinite at the ends of many a path. With
    `UniformLogSNR` times, whose density has this factor already, take `SNR` instead: the mean loss is the same bound
    between their ends, divided by the range of log-SNR, and its variance is that of the error alone.
    """

    basis: ClassVar[Basis] = "eps"

    def weight(self, process: Process, t: Float[Array, " B"]) -> Float[Array, " B"]:
        return pace(process, t)


@dataclass(frozen=True)
class Sigmoid:
    """-lambda' sigmoid(bias - log SNR) on eps (Kingma and Gao 2023, 2303.00848; Hoogeboom et al. 2024, 2410.19324).

    Of the likelihood's weight it keeps what is noisier than `bias`.
    """

    bias: float = -3.0
    """The log SNR at which the weight is half; more negative for higher resolutions."""

    basis: ClassVar[Basis] = "eps"

    def weight(self, process: Process, t: Float[Array, " B"]) -> Float[Array, " B"]:
        return pace(process, t) * jax.nn.sigmoid(self.bias - 2 * log_snr(process, t))
