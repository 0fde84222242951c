"""Every solver there is, and whether one fits a process: its needs, met or not between two times.

(The needs are those of the formulas: Karras et al. 2022, arXiv:2206.00364, table 1, has most solvers side by side.)
"""

import jax
import numpy as np
from jaxtyping import Array, Float

from genjax.diffusion.process import Process
from genjax.diffusion.solvers.ddim import DDIM
from genjax.diffusion.solvers.edm import EDMHeun
from genjax.diffusion.solvers.exponential import DPMpp1, DPMpp2M, DPMpp3M, DPMppSDE2M, UniPC2
from genjax.diffusion.solvers.integrate import Solver
from genjax.diffusion.solvers.reverse_sde import Ancestral, EulerMaruyama, ReverseDiffusion
from genjax.diffusion.solvers.runge_kutta import RK4, Euler, Heun
from genjax.errors import InputError

__all__ = ["SOLVERS", "check_fit", "unmet"]

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
"""One of each kind, and of those that are deterministic or not one of either."""


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
