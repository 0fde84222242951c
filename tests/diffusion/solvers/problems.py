"""Problems whose answers are known, for the laws of solvers.

Gaussian data N(m, s^2) make x_t ~ N(alpha m, alpha^2 s^2 + sigma^2), and the flow carries a standard score z along
x_t = alpha m + sqrt(alpha^2 s^2 + sigma^2) z. The denoiser is the posterior mean. What a solver makes of it is affine
in the start and in all noise it draws, so that mean and variance of its samples are found exactly: from a row without
noise, and one row for each unit of noise.
"""

import functools
import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.diffusion import solvers as S
from genjax.diffusion.predictions import Denoised
from genjax.diffusion.process import RectifiedFlow, coefficients, like, time_of_log_snr

MEAN, STD = 0.5, 0.4
BOUND = 256


def posterior_mean(process, mean=MEAN, std=STD):
    """The best denoiser of Gaussian data."""

    def denoiser(x, t):
        c = coefficients(process, like(t, x))
        variance = c.alpha**2 * std**2 + c.sigma**2
        score = (x - c.alpha * mean) / variance
        return Denoised(x_0=mean + c.alpha * std**2 * score, eps=c.sigma * score)

    return denoiser


def solution(process, z, t):
    alpha, sigma = process.alpha(t), process.sigma(t)
    return alpha * MEAN + jnp.sqrt(alpha**2 * STD**2 + sigma**2) * z


class GivenNoise(S.Step):
    """A step that draws from a table [index, draw], if it has one, and else a unit for row index + 1."""

    table = None

    def noise(self, x, draw=0):
        if self.table is not None:
            return jnp.asarray(self.table)[self.index, draw].reshape(x.shape).astype(x.dtype)
        return jnp.ones_like(x) * like((jnp.arange(len(x)) == self.index + 1).astype(x.dtype), x)


@dataclass(frozen=True, eq=False)
class WithoutKeys:
    """A solver whose noise is given."""

    solver: Any
    table: Any = None
    stochastic = False
    evaluations_per_step = property(lambda self: self.solver.evaluations_per_step)
    order = property(lambda self: self.solver.order)
    evaluates_last = property(lambda self: self.solver.evaluates_last)
    needs = property(lambda self: self.solver.needs)

    def initialise(self, x):
        return self.solver.initialise(x)

    def step(self, process, denoiser, state, step):
        step = GivenNoise(*step)
        step.table = self.table
        return self.solver.step(process, denoiser, state, step)

    def finalise(self, state):
        return self.solver.finalise(state)


# ------------------------------------------------------------------------------------------------ orders of convergence


def inner_times(process, steps):
    """Even in log-SNR from -1 to 2, after a first step of second order: its error, of order 1, is not to be seen."""
    log_snr = np.append(-1.0, np.linspace(-1 + 3 / steps**2, 2, steps))
    return np.asarray(time_of_log_snr(process, jnp.asarray(log_snr)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def gaussian_error(solver, process, times, steps):
    """The largest error over the path of the sample or, with noise, of mean and variance."""
    visited = times[:, None]
    if not solver.stochastic:
        z = jnp.linspace(-2, 2, 5)
        x = S.integrate(
            solver,
            process,
            posterior_mean(process),
            solution(process, z, times[0]),
            times,
            steps=steps,
            trajectory=True,
        )
        return jnp.abs(x - solution(process, z, visited)).max()
    rows = jnp.zeros(len(times) + 1).at[-1].set(1.0)  # the mean, a unit of each step's noise, a unit of the start's
    start = solution(process, rows, times[0])
    x = S.integrate(WithoutKeys(solver), process, posterior_mean(process), start, times, steps=steps, trajectory=True)
    variance = jnp.sum((x[:, 1:] - x[:, :1]) ** 2, axis=1)
    mean_error = x[:, 0] - solution(process, 0.0, times)
    variance_error = variance - process.alpha(times) ** 2 * STD**2 - process.sigma(times) ** 2
    return jnp.abs(jnp.stack([mean_error, variance_error])).max()


@functools.partial(jax.jit, static_argnums=(0, 1))
def whole_error(solver, process, times):
    """The largest error of the sample at the end."""
    start = solution(process, jnp.linspace(-2, 2, 5), times[0])
    x = S.integrate(solver, process, posterior_mean(process), start, times)
    return jnp.abs(x - solution(process, jnp.linspace(-2, 2, 5), times[-1])).max()


def observed_order(solver, process, steps=(BOUND // 2, BOUND)):
    """The power of the step that the error falls with."""
    errors = [gaussian_error(solver, process, S.padded(inner_times(process, n), BOUND), n) for n in steps]
    return float(np.log(errors[0] / errors[1]) / np.log(steps[1] / steps[0]))


# ------------------------------------------------------------------------------------- trajectories of other libraries


@dataclass(frozen=True)
class Circle:
    """A rectified flow divided by its norm: variance-preserving, with sigma / alpha = t / (1 - t)."""

    def alpha(self, t):
        return (1 - t) / jnp.sqrt((1 - t) ** 2 + t**2)

    def sigma(self, t):
        return t / jnp.sqrt((1 - t) ** 2 + t**2)


@dataclass(frozen=True)
class Widening:
    """The data as it is, and noise of standard deviation t / (1 - t)."""

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return t / (1 - t)


PROCESSES = {"flow": RectifiedFlow(), "vp": Circle(), "ve": Widening()}


def made(kind, options):
    """A solver by its name, with options that may be such options themselves."""
    nested = {f.name: f.default for f in fields(kind) if is_dataclass(f.default)}
    return kind(**{k: made(type(nested[k]), v) if k in nested else v for k, v in options.items()})


def replayed(run, times, start, noise):
    """The states of a run of tests/golden/make_solvers.py, [process, scheduler, steps, arguments, solver, options]."""
    process = PROCESSES[run[0]]
    solver = WithoutKeys(made(getattr(S, run[4]), run[5]), noise)

    def denoiser(x, t):
        t = like(t, x)
        alpha, sigma = process.alpha(t), process.sigma(t)
        x_0 = jnp.tanh(2 * x / (jnp.sqrt(1 + sigma**2) if run[0] == "ve" else 1) + t)
        return Denoised(x_0, (x - alpha * x_0) / sigma)

    if run[5].get("corrector"):  # whose reference takes the mean of norms over a batch: one sample
        start = start[None]
    x = jax.jit(lambda x, times: S.integrate(solver, process, denoiser, x, times, trajectory=True))(start, times)
    return x.reshape(len(times), 4, 3) / process.sigma(times)[0]


def runs_of(golden, *names):
    """Those runs among the golden ones that are of a solver of these names."""
    return [run for run, told in json.loads(str(golden["metadata"]))["runs"].items() if told[4] in names]


def distance_from_golden(golden, run):
    """The largest difference of a state from the reference's, in units of the noise that the run starts from."""
    told = json.loads(str(golden["metadata"]))["runs"][run]
    times, x = golden[f"{run}.times"], golden[f"{run}.x"]
    visited = replayed(told, times, np.float64(x[0]), np.float64(golden["noise"]))
    expected = x / PROCESSES[told[0]].sigma(times)[0]
    # diffusers' flow Heun ends with an Euler step, where ours evaluates the velocity at t = 0, which a network has
    last = -1 if told[4] == "Heun" else None
    return float(np.abs(visited - expected)[:last].max())
