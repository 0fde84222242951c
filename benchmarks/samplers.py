"""Every solver on every process that it fits: its order, its noise, and its error for a number of evaluations.

    python benchmarks/samplers.py                   --out out/samplers

Nothing is learned here: the denoisers of a Gaussian and of a mixture are known (`genjax.diffusion.targets`), so that a
solver has nothing to err by but itself. What it makes of a Gaussian is affine in its start and in all noise it draws;
mean and variance of its samples are found exactly, from a row without noise and one for each unit of noise. In float64:

    order       the power of the step that the error falls with, from 64 to 128 steps, even in log-SNR from -1 to 2
                after a first step of second order: of mean and standard deviation of the Gaussian and, without noise,
                of samples of the mixture, whose ODE an adaptive solver follows to 1e-10
    noise       how far mean and variance of drawn samples are from the exact ones, in their standard errors
    error       of mean and standard deviation, in those of the data, on whole paths by KarrasSigmas, against NFE

The last are drawn to samplers.png below --out. One pair is out of tolerance, and should be: RK4's fourth order is of a
smooth ODE, and DDPM's table is one only at its thousand times, between which it is interpolated.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import side_by_side as sbs
import tyro

from genjax.diffusion import solvers as S
from genjax.diffusion.adaptive import DormandPrince
from genjax.diffusion.grids import KarrasSigmas
from genjax.diffusion.process import Process, RectifiedFlow, like, time_of_log_snr
from genjax.diffusion.processes import DDPM, EDM, VE, VP, CosineVP, SubVP, Trigonometric
from genjax.diffusion.targets import Gaussian, Mixture
from genjax.keys import row_keys

PROCESSES = (RectifiedFlow(), VP(), CosineVP(), SubVP(), VE(), EDM(), Trigonometric(), DDPM())
GAUSSIAN, MIXTURE = Gaussian(), Mixture()
STEPS = (64, 128)
BOUND = max(STEPS)


@dataclass(frozen=True)
class Samplers:
    """What is measured."""

    out: Path = Path("out/samplers")
    """Where the plot goes."""
    samples: int = 4000
    """Samples whose mean and variance are compared with the exact ones."""
    evaluations: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Numbers of evaluations (NFE) at which the error is told."""
    tolerance: float = 0.15
    """How far an observed order may be from the declared one."""


class UnitNoise(S.Step):
    """A step whose noise is a unit for the row that follows its number, and nothing for the others."""

    def noise(self, x, draw=0):
        return jnp.ones_like(x) * like((jnp.arange(len(x)) == self.index + 1).astype(x.dtype), x)


@dataclass(frozen=True)
class Units:
    """A solver with unit noise."""

    solver: Any
    stochastic = False

    def initialise(self, x):
        return self.solver.initialise(x)

    def step(self, process, denoiser, state, step):
        return self.solver.step(process, denoiser, state, UnitNoise(*step))

    def finalise(self, state):
        return self.solver.finalise(state)

    def __getattr__(self, name):
        return getattr(self.solver, name)


def exact_start(process: Process, z, t):
    """The samples of the Gaussian at time t whose standard scores are z."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return alpha * jnp.asarray(GAUSSIAN.means) + jnp.sqrt((alpha * jnp.asarray(GAUSSIAN.stds)) ** 2 + sigma**2) * z


@functools.partial(jax.jit, static_argnums=(0, 1))
def moments(solver, process, times, steps):
    """Mean and standard deviation of the solver's samples at all times, (T, D) each."""
    rows = jnp.zeros((BOUND + 2, 1)).at[-1].set(1.0)
    start = exact_start(process, rows, times[0])
    denoiser = functools.partial(GAUSSIAN.denoised, process)
    x = S.integrate(Units(solver), process, denoiser, start, times, steps=steps, trajectory=True)
    return x[:, 0], jnp.sqrt(jnp.sum((x[:, 1:] - x[:, :1]) ** 2, axis=1))


def moment_errors(solver, process, times) -> np.ndarray:
    """Of mean and standard deviation at each time, in those of the data."""
    steps = len(times) - 1
    mean, std = moments(solver, process, S.padded(times, BOUND), steps)
    zero, one = (exact_start(process, z, times[:, None]) for z in (0.0, 1.0))
    errors = np.stack([mean[: steps + 1] - zero, std[: steps + 1] - (one - zero)]) / np.asarray(GAUSSIAN.stds)
    return np.abs(errors).max(axis=(0, 2))


@functools.partial(jax.jit, static_argnums=(0, 1))
def mixture_samples(solver, process, times, steps, x):
    return S.integrate(solver, process, functools.partial(MIXTURE.denoised, process), x, times, steps=steps)


def inner_times(process: Process, steps: int) -> np.ndarray:
    log_snr = np.append(-1.0, np.linspace(-1 + 3 / steps**2, 2, steps))
    return np.asarray(time_of_log_snr(process, jnp.asarray(log_snr)))


def slope(errors: list[float]) -> float:
    return float(np.log(errors[0] / errors[1]) / np.log(STEPS[1] / STEPS[0]))


def order_of_gaussian(solver, process) -> float:
    return slope([moment_errors(solver, process, inner_times(process, n)).max() for n in STEPS])


def order_of_mixture(solver, process) -> float | None:
    if solver.stochastic:
        return None
    grids = [inner_times(process, n) for n in STEPS]
    start = process.sigma(grids[0][0]) * np.random.default_rng(0).normal(size=(16, 2))
    exact = followed(process, start, grids[0][0], grids[0][-1])
    found = [mixture_samples(solver, process, S.padded(times, BOUND), len(times) - 1, start) for times in grids]
    return slope([float(jnp.abs(x - exact).max()) for x in found])


@functools.partial(jax.jit, static_argnums=0)
def followed(process, x, first, last):
    solver = DormandPrince(rtol=1e-10, atol=1e-10, max_steps=5000)
    return solver.sample(process, functools.partial(MIXTURE.denoised, process), x, first=first, last=last).x


def deviation_of_noise(solver, process, config: Samplers) -> float:
    """The largest deviation of a mean or variance of drawn samples from the exact one, in its standard errors."""
    times = inner_times(process, STEPS[0])
    mean, std = (np.asarray(x)[-1] for x in moments(solver, process, S.padded(times, BOUND), len(times) - 1))
    z = jax.random.normal(jax.random.key(0), (config.samples, 2))
    start, keys = exact_start(process, z, times[0]), row_keys(1, jnp.arange(config.samples))
    x = drawn(solver, process, S.padded(times, BOUND), len(times) - 1, start, keys)
    off_mean = (np.mean(x, axis=0) - mean) / std * np.sqrt(config.samples)
    off_variance = (np.mean((x - mean) ** 2, axis=0) / std**2 - 1) * np.sqrt(config.samples / 2)
    return float(np.abs([off_mean, off_variance]).max())


@functools.partial(jax.jit, static_argnums=(0, 1))
def drawn(solver, process, times, steps, x, keys):
    denoiser = functools.partial(GAUSSIAN.denoised, process)
    return S.integrate(solver, process, denoiser, x, times, steps=steps, keys=keys)


def whole_errors(solver, process, config: Samplers) -> dict[int, float]:
    """Error at the data by NFE, of those that the solver can have."""
    found = {}
    grid = KarrasSigmas(s_min=0.01, s_max=None if S.needs.has_signal(process, jnp.float32(1)) else 80.0)
    for count in config.evaluations:
        steps = count // solver.evaluations_per_step
        if 1 <= steps <= BOUND:
            times = grid.grid(process, steps)
            if not S.unmet(solver, process, times[0], times[-1]):
                found[count] = float(moment_errors(solver, process, times)[-1])
    return found


def title(solver) -> str:
    told = {"DDIM(eta=1.0)": "DDIM, eta 1", "Ancestral": "Ancestral"}
    name = told.get(str(solver), type(solver).__name__)
    return f"{name}, {solver.variance}" if hasattr(solver, "variance") else name


def plot(errors: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    figure, axes = plt.subplots(2, -(-len(errors) // 2), figsize=(20, 9), sharex=True, sharey=True)
    for axis, (process, by_solver) in zip(axes.flat, errors.items(), strict=False):
        axis.set_title(process)
        for i, (solver, curve) in enumerate(by_solver.items()):
            marker = "osv^Dx+*P"[i % 9]
            axis.loglog(list(curve), list(curve.values()), marker=marker, color=f"C{i % 10}", label=solver, lw=1, ms=4)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("evaluations (NFE)")
    axes[0, 0].set_ylabel("error of mean and deviation")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside right upper")
    path.mkdir(parents=True, exist_ok=True)
    figure.savefig(path / "samplers.png", dpi=90, bbox_inches="tight")


def main(config: Samplers) -> None:
    jax.config.update("jax_enable_x64", True)
    names = [type(process).__name__ for process in PROCESSES]
    rows, worst, errors, sigmas, misses = [], 0.0, {name: {} for name in names}, {}, []
    for solver in S.SOLVERS:
        cells = []
        for name, process in zip(names, PROCESSES, strict=True):
            times = inner_times(process, 2)
            if S.unmet(solver, process, times[0], times[-1]):
                cells.append("-")
                continue
            orders = [order_of_gaussian(solver, process), order_of_mixture(solver, process)]
            off = max(abs(order - solver.order) for order in orders if order is not None)
            worst = max(worst, off)
            misses += [f"{title(solver)} on {name}"] if off > config.tolerance else []
            cells.append(" ".join(f"{order:.2f}" for order in orders if order is not None))
            errors[name][title(solver)] = whole_errors(solver, process, config)
            if solver.stochastic:
                sigmas[f"{title(solver)} on {name}"] = deviation_of_noise(solver, process, config)
        rows.append([title(solver), str(solver.order), *cells])
    sbs.print_table("observed order: Gaussian and, without noise, mixture", ["solver", "declared", *names], rows)
    for name in ("RectifiedFlow", "VP", "EDM"):
        found = errors[name]
        cells = [
            [solver, *(f"{curve[n]:.1e}" if n in curve else "-" for n in config.evaluations)]
            for solver, curve in found.items()
        ]
        sbs.print_table(
            f"error on a whole path of {name} against NFE", ["solver", *map(str, config.evaluations)], cells
        )
    plot(errors, config.out)
    best = {name: min(found, key=lambda s: found[s].get(32, np.inf)) for name, found in errors.items()}
    sbs.print_result(
        benchmark="samplers",
        solvers=len(S.SOLVERS),
        pairs=sum(map(len, errors.values())),
        largest_difference_of_order=worst,
        out_of_tolerance=misses,
        largest_deviation_of_noise=max(sigmas.values()),
        best_at_32=best,
        plot=str(config.out / "samplers.png"),
    )


if __name__ == "__main__":
    main(tyro.cli(Samplers, description=__doc__))
