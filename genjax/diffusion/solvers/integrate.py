"""The contract of solvers, and the one `lax.scan` that drives them from noise (t = 1) to data (t = 0).

    state = solver.initialise(x)
    state = solver.step(process, denoiser, state, step)        once per step, step = (index, steps, t, t_next, keys)
    x     = solver.finalise(state)

A solver sees the network as a denoiser (x_t, t) -> (x_0, eps) and knows nothing else of it. It integrates the
probability-flow ODE or the reverse SDE of a process (Song et al. 2021, arXiv:2011.13456, equations 13 and 6); what it
says of itself (order, evaluations, noise, needs) is data, which tests, tables and refusals read.

One program serves every seed, every guidance and, where the times are `padded`, every number of steps up to a bound.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from genjax.diffusion.predictions import Denoised
from genjax.diffusion.process import Process, velocity
from genjax.errors import InputError

__all__ = ["Denoiser", "Need", "Solver", "Step", "at", "check_times", "integrate", "padded", "slope"]

Denoiser = Callable[[Array, Array], Denoised]


class Step(NamedTuple):
    """What a solver is told of one step; all are scalars but the keys, of which each row of the batch has one."""

    index: Int[Array, ""]
    """Number of the step, from 0."""
    steps: Int[Array, ""]
    """How many there are."""
    t: Float[Array, ""]
    t_next: Float[Array, ""]
    keys: Key[Array, " B"] | None
    """Keys of the rows, folded with the index; None for a solver that draws nothing."""

    def noise(self, x: Float[Array, "B *shape"], draw: int | Int[Array, ""] = 0) -> Float[Array, "B *shape"]:
        """Standard normal noise in the shape of x, each row's from its own key; another for each number of a draw."""
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, draw)
        return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


class Need(NamedTuple):
    """What a solver asks of a process on the way from a first time to a last one."""

    text: str
    """After "needs"."""
    met: Callable[[Process, Array, Array], Array]
    """Whether (process, first, last) meets it."""


@runtime_checkable
class Solver(Protocol):
    """An integrator, and what it says of itself.

    `evaluations_per_step` counts calls of the denoiser (NFE without guidance). `order` is the power of the step that
    the error falls with; of a `stochastic` solver, which needs keys, it is the error of mean and covariance (the weak
    order). `evaluates_last` is whether the sample depends on what the denoiser says at the last time, if that is data.
    A process that does not meet its `needs` is refused by `check_fit`.
    """

    evaluations_per_step: int
    order: int
    stochastic: bool
    evaluates_last: bool
    needs: tuple[Need, ...]

    def initialise(self, x: Array) -> Any: ...

    def step(self, process: Process, denoiser: Denoiser, state: Any, step: Step) -> Any: ...

    def finalise(self, state: Any) -> Array: ...


def integrate(
    solver: Solver,
    process: Process,
    denoiser: Denoiser,
    x: Float[Array, "B *shape"],
    times: Float[Array, " T"],
    *,
    keys: Key[Array, " B"] | None = None,
    steps: int | Int[Array, ""] | None = None,
    trajectory: bool = False,
) -> Float[Array, "B *shape"] | Float[Array, "T B *shape"]:
    """x carried from times[0] to times[-1] in T - 1 steps; with `trajectory`, all T states, the start included.

    keys: one per row, which a stochastic solver needs and no other uses; row i of the result depends on key i alone.
    steps: how many of the T - 1 are taken, the others are skipped; all where it is not given. It may be traced.

    Raises InputError for times that do not rise or fall strictly, and for a stochastic solver without keys or with
    times that rise: only the probability-flow ODE leads back to noise.
    """
    if not isinstance(times, jax.core.Tracer) and steps is None:
        check_times(np.asarray(times, jnp.promote_types(x.dtype, jnp.float32)))
        if solver.stochastic and times[0] < times[-1]:
            raise InputError(
                f"{type(solver).__name__} draws noise, and goes no way from data to noise: times must fall"
            )
    if solver.stochastic and keys is None:
        raise InputError(f"{type(solver).__name__} draws noise, and needs one key per row")
    times = jnp.asarray(times, jnp.promote_types(x.dtype, jnp.float32))
    index = jnp.arange(len(times) - 1)
    taken = jnp.broadcast_to(jnp.asarray(len(index) if steps is None else steps), index.shape)
    folded = None
    if solver.stochastic:
        folded = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))(keys, index)

    def advance(state, step):
        return solver.step(process, denoiser, state, step)

    def one(state, step):
        if steps is None:
            state = advance(state, step)
        else:
            state = jax.lax.cond(step.index < step.steps, advance, lambda state, _: state, state, step)
        return state, solver.finalise(state) if trajectory else None

    every_step = Step(index, taken, times[:-1], times[1:], folded)
    state, visited = jax.lax.scan(one, solver.initialise(x), every_step)
    return jnp.concatenate([x[None], visited]) if trajectory else solver.finalise(state)


def padded(times: Float[np.ndarray, " T"], bound: int) -> Float[np.ndarray, " padded"]:
    """bound + 1 times: the last one is repeated, so that one program integrates every grid of up to `bound` steps.

    Raises InputError where there are more steps than `bound`.
    """
    if len(times) > bound + 1:
        raise InputError(f"the grid has {len(times) - 1} steps, and the bound is {bound}")
    return np.pad(np.asarray(times), (0, bound + 1 - len(times)), mode="edge")


def check_times(times: Float[np.ndarray, " T"]) -> None:
    """Raise InputError where times are not at least two in [0, 1] that rise strictly or fall strictly."""
    falls = np.diff(times)
    if len(times) < 2 or not ((falls < 0).all() or (falls > 0).all()):
        raise InputError("the times of a grid are at least two, each below the one before it (or each above)")
    if not (times.min() >= 0 and times.max() <= 1):
        raise InputError(f"the times of a grid lie in [0, 1], not from {times[0]:g} to {times[-1]:g}")


def at(denoiser: Denoiser, x: Float[Array, "B *shape"], t: Float[Array, ""]) -> Denoised:
    """What the denoiser says of x where all rows are at time t."""
    return denoiser(x, jnp.broadcast_to(t, x.shape[:1]))


def slope(
    process: Process,
    denoiser: Callable[..., Denoised],
    x: Float[Array, "B *shape"],
    t: Float[Array, ""],
    *end: Float[Array, ""],
) -> Float[Array, "B *shape"]:
    """dx/dt of the probability-flow ODE: the velocity of what the denoiser says (Song et al. 2021, equation 13).

    With an `end`, which the denoiser is told too, its mean from t to there.
    """
    t, *end = (jnp.broadcast_to(time, x.shape[:1]) for time in (t, *end))
    denoised = denoiser(x, t, *end)
    return velocity(process, denoised.x_0, denoised.eps, t)
