r"""The mean velocity between two times, by which one evaluation makes a whole step (MeanFlow).

(Geng et al. 2025, arXiv:2505.13447.) Along a path x_s of the probability-flow ODE, whose velocity is v, let

    u(x_t, t, r) = 1 / (t - r) integral from r to t of v(x_s, s) ds        then   x_r = x_t - (t - r) u(x_t, t, r)

exactly, however far r is. Differentiating (t - r) u along the path gives an identity without the integral (equation 6),

    u(x_t, t, r) = v(x_t, t) - (t - r) d/dt u(x_t, t, r),        d/dt = v d/dx + d/dt, a derivative along (v, 1)

whose right side, with the velocity of a single pair (x_0, eps) and no gradient through it, is the target. One forward
derivative of the network gives it. For r = t it is flow matching.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.predictions import Denoised, Inputs, Network, Part, Velocity, Weigh, squared_error
from genjax.diffusion.process import Process, Times, noised, velocity
from genjax.diffusion.times import LogitNormal, TimeDensity
from genjax.errors import InputError

__all__ = ["MeanVelocity"]


@dataclass(frozen=True)
class MeanVelocity:
    """The network predicts the mean velocity from time t to an end r that it is told: it sees (t, t - r).

    Where no end is given it is r = t, and the network's word is the velocity: every solver takes it so. `Jump` gives
    the end of each of its steps.
    """

    ends: TimeDensity = LogitNormal(-0.4, 1.0)
    """Density of the second time of a row in training; of the two, t is the later one and r the earlier. It is drawn as
    it is: a system's time_shift and draws are of its first time."""
    instantaneous: float = 0.75
    """The share of rows with r = t."""
    power: float = 1.0
    """Each row's gradient is that of its squared error e, summed over the row, divided by (e + offset)^power (equation
    22), times the weight; 0 leaves e as it is. The value that is told is the weighted mean square all the same."""
    offset: float = 0.01
    """See `power`."""

    needs: ClassVar[tuple[Part, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.instantaneous <= 1:
            raise InputError(f"instantaneous of MeanVelocity is a share, from 0 to 1, not {self.instantaneous}")
        if not 0 <= self.power < math.inf:
            raise InputError(f"power of MeanVelocity is 0 or more, not {self.power}")
        if not 0 < self.offset < math.inf:
            raise InputError(f"offset of MeanVelocity is positive, not {self.offset}")

    def inputs(
        self, process: Process, x_t: Float[Array, "B *shape"], t: Float[Array, " B"], end: Array | None = None
    ) -> Inputs:
        """x_t, and (t, t - end) of each row (B, 2); the end is t where it is not given."""
        length = jnp.zeros_like(t) if end is None else t - end
        return Inputs(x_t, jnp.stack([t, length], axis=-1))

    def target(self, process: Process, x_0: Array, eps: Array, t: Times) -> Array:
        """That of an interval without length: the velocity."""
        return velocity(process, x_0, eps, t)

    def denoised(self, process: Process, output: Array, x_t: Array, t: Times) -> Denoised:
        """The pair whose velocity at x_t is the network's output."""
        return Velocity().denoised(process, output, x_t, t)

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
        """The weighted mean squared error of the identity at one interval per row; at r = t without keys."""
        t, end = (t, t) if keys is None else self.interval(process, t, keys)
        x_t = noised(process, x_0, eps, t)
        along = velocity(process, x_0, eps, t)

        def mean_velocity(x, t):
            return network(*self.inputs(process, x, t, end))

        said, slope = jax.jvp(mean_velocity, (x_t, t), (along, jnp.ones_like(t)))
        length = (t - end).reshape(-1, *[1] * (x_t.ndim - 1))
        error, weight = squared_error(said - jax.lax.stop_gradient(along - length * slope)), weigh(self, t)
        total = error * x_t[0].size
        led = weight * total / jax.lax.stop_gradient(total + self.offset) ** self.power
        return led + jax.lax.stop_gradient(weight * error - led)

    def interval(
        self, process: Process, t: Float[Array, " B"], keys: Key[Array, " B"]
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(t, r) of each row, r <= t: the given time and a drawn one in their order, r = t in a share of rows."""
        u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        other = self.ends.quantile(u[:, 0] * (1 - 2.0**-23) + 2.0**-24, process)
        later, earlier = jnp.maximum(t, other), jnp.minimum(t, other)
        return later, jnp.where(u[:, 1] < self.instantaneous, later, earlier)
