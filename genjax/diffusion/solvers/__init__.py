"""Solvers of the probability-flow ODE and of the reverse SDE: one contract, and a file for each family.

integrate       the contract, and the scan that drives every solver
runge_kutta     Euler, Heun, RK4                              in the time of the process
exponential     DPM-Solver++, UniPC                           in log-SNR
ddim            DDIM(eta)
edm             Heun in sigma / alpha, with churn
reverse_sde     ancestral sampling, predictors and correctors
jump            steps along mean velocities
needs, fit      which solver, and which prediction, fits which process
"""

from genjax.diffusion.solvers.ddim import DDIM
from genjax.diffusion.solvers.edm import EDMHeun
from genjax.diffusion.solvers.exponential import DPMpp1, DPMpp2M, DPMpp3M, DPMppSDE2M, UniPC2
from genjax.diffusion.solvers.fit import SOLVERS, check_fit, check_jump, check_prediction, missing_parts, unmet
from genjax.diffusion.solvers.integrate import Denoiser, Need, Solver, Step, check_times, integrate, padded
from genjax.diffusion.solvers.jump import Jump
from genjax.diffusion.solvers.reverse_sde import Ancestral, EulerMaruyama, Langevin, ReverseDiffusion
from genjax.diffusion.solvers.runge_kutta import RK4, Euler, Heun

__all__ = [
    "DDIM",
    "RK4",
    "SOLVERS",
    "Ancestral",
    "DPMpp1",
    "DPMpp2M",
    "DPMpp3M",
    "DPMppSDE2M",
    "Denoiser",
    "EDMHeun",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Jump",
    "Langevin",
    "Need",
    "ReverseDiffusion",
    "Solver",
    "Step",
    "UniPC2",
    "check_fit",
    "check_jump",
    "check_prediction",
    "check_times",
    "integrate",
    "missing_parts",
    "padded",
    "unmet",
]
