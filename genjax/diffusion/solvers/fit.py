"""Every solver there is, and whether one or a prediction fits a process: their needs, met or not between two times.

(The needs are those of the formulas: Karras et al. 2022, arXiv:2206.00364, table 1, has most solvers side by side.)
"""

import jax
import numpy as np
from jaxtyping import Array, Float

from genjax.diffusion.mean_velocity import MeanVelocity
from genjax.diffusion.predictions import X0, Eps, Part, Preconditioned, Prediction, Score, V, Velocity
from genjax.diffusion.process import Process
from genjax.diffusion.solvers.ddim import DDIM
from genjax.diffusion.solvers.edm import EDMHeun
from genjax.diffusion.solvers.exponential import DPMpp1, DPMpp2M, DPMpp3M, DPMppSDE2M, UniPC2
from genjax.diffusion.solvers.integrate import Solver
from genjax.diffusion.solvers.jump import Jump
from genjax.diffusion.solvers.needs import has_noise, has_signal
from genjax.diffusion.solvers.reverse_sde import Ancestral, EulerMaruyama, ReverseDiffusion
from genjax.diffusion.solvers.runge_kutta import RK4, Euler, Heun
from genjax.errors import InputError

__all__ = ["SOLVERS", "check_fit", "check_jump", "check_prediction", "missing_parts", "unmet"]

SOLVERS: tuple[Solver, ...] = (
    Euler(),
    Heun(),
    RK4(),
    DDIM(),
    DPMpp1(),
    DPMpp2M(),
    DPMpp3M(),
    UniPC2(),
    EDMHeun(),
    DDIM(eta=1.0),
    Ancestral(),
    Ancestral(variance="large"),
    ReverseDiffusion(),
    EulerMaruyama(),
    DPMppSDE2M(),
)
"""One of each kind but `Jump`, which integrates nothing; of those that are deterministic or not one of either."""


def unmet(solver: Solver, process: Process, first: float = 1.0, last: float = 0.0) -> tuple[str, ...]:
    """What the solver needs of a process from time `first` to `last`, and does not find: texts of needs."""
    with jax.ensure_compile_time_eval():
        ends = np.float32(first), np.float32(last)
        return tuple(need.text for need in solver.needs if not need.met(process, *ends))


def check_fit(solver: Solver, process: Process, times: Float[Array, " T"]) -> None:
    """Raise InputError where the solver does not fit the process between the ends of the times, with those that do."""
    ends = float(times[0]), float(times[-1])
    missing = unmet(solver, process, *ends)
    if missing:
        fitting = dict.fromkeys(type(other).__name__ for other in SOLVERS if not unmet(other, process, *ends))
        raise InputError(
            f"{type(solver).__name__} needs {' and '.join(missing)}, and {type(process).__name__} has none from"
            f" t = {ends[0]:g} to {ends[1]:g}: choose other times, or one of {', '.join(fitting)}"
        )


def check_jump(solver: Solver, prediction: Prediction, times: Float[Array, " T"]) -> None:
    """Raise InputError where the solver jumps, and the network predicts no mean velocity or the times rise."""
    if not isinstance(solver, Jump):
        return
    if not isinstance(prediction, MeanVelocity):
        raise InputError(
            f"Jump steps along mean velocities, which a network learns that predicts MeanVelocity, and this one"
            f" predicts {type(prediction).__name__}: choose Euler or another solver of its velocity"
        )
    if times[0] < times[-1]:
        raise InputError("Jump steps from noise to data, for which mean velocities are learned: choose Euler or Heun")


PREDICTIONS: tuple[Prediction, ...] = (X0(), Eps(), Score(), V(), Velocity(), Preconditioned())
"""One of each kind that differs in what it needs; a `LearnedVariance` as its mean, a `MeanVelocity` as Velocity."""


def missing_parts(prediction: Prediction, process: Process, times: Float[Array, " T"]) -> tuple[Part, ...]:
    """Which parts of x_t the prediction needs, and x_t has none of at one of the times."""
    has = {"data": has_signal, "noise": has_noise}
    with jax.ensure_compile_time_eval():
        t = np.asarray(times, np.float32)
        return tuple(part for part in prediction.needs if not has[part](process, t).all())


def check_prediction(
    prediction: Prediction, process: Process, times: Float[Array, " T"], *, evaluates_last: bool
) -> None:
    """Raise InputError where (x_0, eps) is undefined at one of the times a solver evaluates, with what is defined.

    evaluates_last: whether the last time is one of them; of a `Solver`, its attribute of that name.
    """
    evaluated = np.asarray(times) if evaluates_last else np.asarray(times)[:-1]
    missing = missing_parts(prediction, process, evaluated)
    if missing:
        fitting = [type(other).__name__ for other in PREDICTIONS if not missing_parts(other, process, evaluated)]
        raise InputError(
            f"{type(prediction).__name__} needs some {' and '.join(missing)} in x_t, and {type(process).__name__} has"
            f" none at an end of its times from t = {evaluated[0]:g} to {evaluated[-1]:g}: choose other times, or one"
            f" of {', '.join(fitting)}"
        )
