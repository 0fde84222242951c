"""Exponential integrators: the linear part of the probability-flow ODE is solved exactly, the data is extrapolated.

With lambda = log(alpha / sigma), h = lambda+ - lambda > 0, and x_0(x, t) what the denoiser says of the data,

    x+ = (sigma+ / sigma) x + alpha+ (1 - e^-h) D                    (Lu et al. 2022, arXiv:2211.01095, section 4)

    DPM++(1)   D = x_0, order 1: DDIM without noise
    DPM++(2M)  D = x_0 + h / (2 h_1) (x_0 - x_0_1)                   algorithm 2, order 2; _1 is of the step before
    DPM++(3M)  the parabola through the last three x_0, order 3
    UniPC-2    DPM++(2M), and each evaluation corrects the step before, order 3
    DPM++(2M) SDE    the same for a reverse SDE, with fresh noise

They are written so that sigma = 1 with alpha = 0, and sigma+ = 0, are finite. Where a log-SNR is infinite (the first
and the last step of a path), h is, and D = x_0, which is first order and exact in the limit. Steps of equal time never
become small in log-SNR there: on a whole path the error of 2M is O(log(N) / N^2).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.process import Process, log_snr
from genjax.diffusion.solvers.integrate import Step, at
from genjax.errors import InputError

__all__ = [
    "DPMpp1",
    "DPMpp2M",
    "DPMpp3M",
    "DPMppSDE2M",
    "History",
    "MultistepState",
    "UniPC2",
    "UniPCState",
    "first_order",
]


class _Interval(NamedTuple):
    """A step in log-SNR, and alpha and sigma at its end."""

    h: Array
    alpha: Array
    sigma: Array


def _interval(process: Process, step: Step) -> _Interval:
    h = log_snr(process, step.t_next) - log_snr(process, step.t)
    return _Interval(h, process.alpha(step.t_next), process.sigma(step.t_next))


def first_order(
    process: Process, x: Float[Array, "B *shape"], data: Float[Array, "B *shape"], step: Step
) -> Float[Array, "B *shape"]:
    """x+ for a constant estimate of the data (Lu et al. 2022, equation 9 for k = 1; DDIM)."""
    ratio = process.sigma(step.t_next) / process.sigma(step.t)
    return ratio * x + (process.alpha(step.t_next) - process.alpha(step.t) * ratio) * data


@dataclass(frozen=True)
class DPMpp1:
    """DPM-Solver++(1): the step of DDIM without noise, and Euler's method in sigma / alpha."""

    evaluations_per_step = 1
    order = 1
    stochastic = False
    evaluates_last = False
    needs = ()

    def initialise(self, x):
        return x

    def step(self, process, denoiser, x, step):
        return first_order(process, x, at(denoiser, x, step.t).x_0, step)

    def finalise(self, x):
        return x


class MultistepState(NamedTuple):
    """What a two-step method carries: the sample, the last estimate of the data, and the last step in log-SNR."""

    x: Array
    x_0: Array
    h: Array


@dataclass(frozen=True)
class DPMpp2M:
    """The two-step DPM-Solver++ in the data prediction."""

    evaluations_per_step = 1
    order = 2
    stochastic = False
    evaluates_last = False
    needs = ()

    def initialise(self, x):
        return MultistepState(x, jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype))

    def step(self, process, denoiser, state, step):
        x_0 = at(denoiser, state.x, step.t).x_0
        h = log_snr(process, step.t_next) - log_snr(process, step.t)
        extrapolated = x_0 + _weight(h, state.h) * (x_0 - state.x_0)
        return MultistepState(first_order(process, state.x, extrapolated, step), x_0, h)

    def finalise(self, state):
        return state.x


def _weight(h: Array, before: Array) -> Array:
    """Of the last difference of x_0 in the extrapolation to the middle of a step; 0 where a step is infinite."""
    return jnp.where(jnp.isfinite(h) & jnp.isfinite(before), h / (2 * before), 0.0)


class History(NamedTuple):
    """What a three-step method carries: the sample, two estimates of the data, and two steps in log-SNR."""

    x: Array
    x_0: Array
    x_0_before: Array
    h: Array
    h_before: Array


@dataclass(frozen=True)
class DPMpp3M:
    """The three-step DPM-Solver++ in the data prediction; its first steps are those of 1 and of 2M.

    The first step, of order 1, has to be a small one for order 3, or at so much noise that x_0 hardly changes.
    """

    published: bool = False
    """Take half of the last term, as the released code of DPM-Solver, k-diffusion and diffusers does; the order is 2
    then. Their D2 is a divided difference, and so half of the second derivative that its factor is for."""
    evaluations_per_step = 1
    stochastic = False
    evaluates_last = False
    needs = ()

    @property
    def order(self) -> int:
        return 2 if self.published else 3

    def initialise(self, x):
        zeros, inf = jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype)
        return History(x, zeros, zeros, inf, inf)

    def step(self, process, denoiser, state, step):
        x_0 = at(denoiser, state.x, step.t).x_0
        h, alpha, _ = _interval(process, step)
        first, second = state.h / h, state.h_before / h
        slope = (x_0 - state.x_0) / first
        slope_before = (state.x_0 - state.x_0_before) / second
        bend = (slope - slope_before) / (first + second)
        # Integrals over the step of h e^(h (u - 1)) times u and u^2, of which x_0 is a polynomial; u from 0 to 1.
        linear = 1 + jnp.expm1(-h) / h
        quadratic = (0.5 if self.published else 1.0) * (1 - 2 * linear / h)
        third = alpha * (linear * (slope + first * bend) + quadratic * bend)
        constant = first_order(process, state.x, x_0, step)
        midpoint = first_order(process, state.x, x_0 + _weight(h, state.h) * (x_0 - state.x_0), step)
        three = jnp.isfinite(h) & jnp.isfinite(state.h) & jnp.isfinite(state.h_before)
        return History(jnp.where(three, constant + third, midpoint), x_0, state.x_0, h, state.h)

    def finalise(self, state):
        return state.x


class UniPCState(NamedTuple):
    """What UniPC carries: the prediction and its first-order part, two estimates of the data, two steps in log-SNR."""

    x: Array
    first_order: Array
    x_0: Array
    x_0_before: Array
    h: Array
    h_before: Array


@dataclass(frozen=True)
class UniPC2:
    """UniPC of order 2 with B(h) = e^h - 1 (Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8).

    The evaluation at the predicted sample corrects it before the next prediction, at no further cost; that raises the
    order of accuracy to 3.
    """

    evaluations_per_step = 1
    order = 3
    stochastic = False
    evaluates_last = False
    needs = ()

    def initialise(self, x):
        zeros, inf = jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype)
        return UniPCState(x, x, zeros, zeros, inf, inf)

    def step(self, process, denoiser, state, step):
        x_0 = at(denoiser, state.x, step.t).x_0
        x = self._corrected(process.alpha(step.t), state, x_0)
        h, _, _ = _interval(process, step)
        predicted = first_order(process, x, x_0 + _weight(h, state.h) * (x_0 - state.x_0), step)
        return UniPCState(predicted, first_order(process, x, x_0, step), x_0, state.x_0, h, state.h)

    def finalise(self, state):
        return state.x

    def _corrected(self, alpha: Array, state: UniPCState, x_0: Array) -> Array:
        """The sample that the last step led to, now that x_0 is known there."""
        h, ratio = state.h, -state.h_before / state.h
        scale = jnp.expm1(-h)
        phi = -scale / h - 1
        sums = phi / scale, 2 * (-phi / h - 0.5) / scale
        past = (sums[0] - sums[1]) / (1 - ratio)
        rise = x_0 - state.x_0
        two = past * (state.x_0_before - state.x_0) / ratio + (sums[0] - past) * rise
        change = jnp.where(jnp.isfinite(state.h_before), two, rise / 2)
        return jnp.where(jnp.isfinite(h), state.first_order - alpha * scale * change, state.x)


@dataclass(frozen=True)
class DPMppSDE2M:
    """DPM-Solver++(2M) of a reverse SDE: x+ = e^(-eta h) (sigma+ / sigma) x + alpha+ (1 - e^-(1 + eta) h) D + noise.

    The noise has the variance sigma+^2 (1 - e^(-2 eta h)) (Lu et al. 2022, section 5 and appendix A, for eta = 1).
    """

    eta: float = 1.0
    """Noise of the SDE, from 0 (none: DPM++(2M)) to 1 (that of the forward process)."""
    evaluations_per_step = 1
    evaluates_last = False
    needs = ()

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta of DPMppSDE2M lies in [0, 1], not at {self.eta}")

    @property
    def order(self) -> int:
        return 2

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def initialise(self, x):
        return DPMpp2M().initialise(x)

    def step(self, process, denoiser, state, step):
        if not self.stochastic:
            return DPMpp2M().step(process, denoiser, state, step)
        x_0 = at(denoiser, state.x, step.t).x_0
        h, alpha, sigma = _interval(process, step)
        data = x_0 + _weight(h, state.h) * (x_0 - state.x_0)
        kept = jnp.exp(-self.eta * h) * sigma / process.sigma(step.t)
        noise = sigma * jnp.sqrt(-jnp.expm1(-2 * self.eta * h)) * step.noise(state.x)
        return MultistepState(kept * state.x - alpha * jnp.expm1(-(1 + self.eta) * h) * data + noise, x_0, h)

    def finalise(self, state):
        return state.x
