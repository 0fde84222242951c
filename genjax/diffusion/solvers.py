"""Solvers of the probability-flow ODE dx/dt = velocity(x, t), from noise (t = 1) to data (t = 0).

A solver is three pure functions, `initialise`, `step` and `finalise`; `integrate` drives them with one `lax.scan` over
pairs of times. It sees the network as a denoiser (x_t, t) -> (x_0, eps) and knows nothing else of it.

    Euler       x+ = x + (t+ - t) v(x, t)                                       order 1, N evaluations in N steps
    Heun        x+ = x + (t+ - t) (v(x, t) + v(x_Euler, t+)) / 2                order 2, 2 N
    DPM++(2M)   x+ = (sigma+ / sigma) x + (alpha+ - alpha sigma+ / sigma) D     order 2, N
                D  = x_0 + h / (2 h_previous) (x_0 - x_0 previous)
                h  = lambda+ - lambda,   lambda = log(alpha / sigma)

DPM-Solver++ is Lu et al. 2022 (arXiv:2211.01095), algorithm 2, written so that sigma = 1 and sigma+ = 0 are finite;
where a log-SNR is infinite (the first and the last step of a path), D = x_0, which is first order and exact in the
limit. Steps of equal time never become small in log-SNR there: on a whole path the error is O(log(N) / N^2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.diffusion.predictions import Denoised
from genjax.diffusion.process import Process, log_snr, velocity
from genjax.diffusion.times import shifted

__all__ = ["DPMpp2M", "Denoiser", "Euler", "Heun", "MultistepState", "Solver", "integrate", "sampling_times"]

Denoiser = Callable[[Array, Array], Denoised]


@runtime_checkable
class Solver(Protocol):
    """An integrator; `evaluations_per_step` counts calls of the denoiser (NFE without guidance)."""

    evaluations_per_step: int

    def initialise(self, x: Array) -> Any: ...

    def step(self, process: Process, denoiser: Denoiser, state: Any, t: Array, t_next: Array) -> Any: ...

    def finalise(self, state: Any) -> Array: ...


def integrate(
    solver: Solver,
    process: Process,
    denoiser: Denoiser,
    x: Float[Array, "B *shape"],
    times: Float[Array, " T"],
    *,
    trajectory: bool = False,
) -> Float[Array, "B *shape"] | Float[Array, "T B *shape"]:
    """x carried from times[0] to times[-1] in T - 1 steps; with `trajectory`, all T states, the start included."""

    def step(state, pair):
        state = solver.step(process, denoiser, state, *pair)
        return state, solver.finalise(state) if trajectory else None

    times = jnp.asarray(times, jnp.promote_types(x.dtype, jnp.float32))
    state, visited = jax.lax.scan(step, solver.initialise(x), (times[:-1], times[1:]))
    return jnp.concatenate([x[None], visited]) if trajectory else solver.finalise(state)


def sampling_times(
    steps: int, *, shift: float = 1.0, spacing: Literal["uniform", "sd3"] = "uniform"
) -> Float[np.ndarray, " times"]:
    """steps + 1 times from 1 to 0, float64, shifted towards noise by `shift` (SD3, equation 23).

    `sd3` is the table of the released SD3 code and of diffusers, which stores its smallest time (1/1000) after shifting
    and shifts the grid again, and takes the last step from there to 0.
    """
    if spacing == "uniform":
        return shifted(np.linspace(1.0, 0.0, steps + 1), shift)
    smallest = shifted(1 / 1000, shift)
    return np.append(shifted(np.linspace(1.0, smallest, steps), shift), 0.0)


def _velocity(process: Process, denoiser: Denoiser, x: Array, t: Array) -> Array:
    t = jnp.broadcast_to(t, x.shape[:1])
    denoised = denoiser(x, t)
    return velocity(process, denoised.x_0, denoised.eps, t)


@dataclass(frozen=True)
class Euler:
    """First-order steps along the velocity."""

    evaluations_per_step = 1

    def initialise(self, x):
        return x

    def step(self, process, denoiser, x, t, t_next):
        return x + (t_next - t) * _velocity(process, denoiser, x, t)

    def finalise(self, x):
        return x


@dataclass(frozen=True)
class Heun:
    """The explicit trapezoidal rule: the mean of the velocities at both ends of an Euler step."""

    evaluations_per_step = 2

    def initialise(self, x):
        return x

    def step(self, process, denoiser, x, t, t_next):
        start = _velocity(process, denoiser, x, t)
        end = _velocity(process, denoiser, x + (t_next - t) * start, t_next)
        return x + (t_next - t) * (start + end) / 2

    def finalise(self, x):
        return x


class MultistepState(NamedTuple):
    """What DPM++(2M) carries: the sample, the last estimate of the data, and the last step in log-SNR."""

    x: Array
    x_0: Array
    h: Array


@dataclass(frozen=True)
class DPMpp2M:
    """The two-step DPM-Solver++ in the data prediction."""

    evaluations_per_step = 1

    def initialise(self, x):
        return MultistepState(x, jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype))

    def step(self, process, denoiser, state, t, t_next):
        x_0 = denoiser(state.x, jnp.broadcast_to(t, state.x.shape[:1])).x_0
        h = log_snr(process, t_next) - log_snr(process, t)
        second_order = jnp.isfinite(h) & jnp.isfinite(state.h)
        weight = jnp.where(second_order, h / (2 * state.h), 0.0)
        extrapolated = x_0 + weight * (x_0 - state.x_0)
        ratio = process.sigma(t_next) / process.sigma(t)
        x = ratio * state.x + (process.alpha(t_next) - process.alpha(t) * ratio) * extrapolated
        return MultistepState(x, x_0, h)

    def finalise(self, state):
        return state.x
