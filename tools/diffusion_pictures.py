"""The pictures of docs/diffusion.md: python tools/diffusion_pictures.py

diffusion-paths.png     how three points of data become noise and come back, with exact denoisers: the density of x_t,
                        and samples on their way along the reverse SDE and along the ODEs of three processes
diffusion-clocks.png    log-SNR against time, of every process
diffusion-steps.png     digits in 1, 2, 4 and 50 evaluations by the runs of tools/results.py: along the velocity, after
                        reflow, and along mean velocities; left as it is where there are no such runs below --runs
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from PIL import Image

from genjax import config
from genjax.diffusion.process import Process, RectifiedFlow, log_snr, prior_std
from genjax.diffusion.processes import DDPM, EDM, VE, VP, CosineVP, SubVP, Trigonometric
from genjax.diffusion.solvers import Euler, EulerMaruyama, Solver, integrate
from genjax.diffusion.targets import Mixture
from genjax.keys import row_keys
from genjax.runs.pictures import grid, to_uint8
from genjax.runs.weights import read_weights

ROOT = Path(__file__).parents[1]
DATA = Mixture(means=((-1.2,), (0.1,), (1.3,)), stds=(0.06, 0.06, 0.06), weights=(0.3, 0.4, 0.3))
PATHS: tuple[tuple[str, Process, Solver], ...] = (
    ("VP: the reverse SDE", VP(), EulerMaruyama()),
    ("VP: its ODE", VP(), Euler()),
    ("rectified flow", RectifiedFlow(), Euler()),
    ("EDM", EDM(sigma_max=4.0), Euler()),
)
PROCESSES = (RectifiedFlow(), VP(), CosineVP(), SubVP(), VE(), EDM(), Trigonometric(), DDPM())
LINES, STEPS, SIDE = 24, 400, 2.6
EVALUATIONS = (1, 2, 4, 50)


@dataclass(frozen=True)
class Pictures:
    """Where pictures go, and where runs are."""

    out: Path = ROOT / "docs/images"
    runs: Path = ROOT / "runs/results"


def main(options: Pictures) -> None:
    for name, figure in (("paths", paths()), ("clocks", clocks())):
        save(figure, options.out / f"diffusion-{name}.png")
    directories = [options.runs / name for name in ("flow", "reflow", "meanflow")]
    if all((directory / "model.safetensors").is_file() for directory in directories):
        plt.imsave(options.out / "diffusion-steps.png", steps(directories), cmap="gray")


def save(figure: plt.Figure, path: Path) -> None:
    """In few colours, as files in the repository are small."""
    figure.savefig(path, dpi=80)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def paths() -> plt.Figure:
    """A panel for each of PATHS: time to the right, data on the left, x_t upwards, its density behind."""
    figure, panels = plt.subplots(1, len(PATHS), figsize=(3.2 * len(PATHS), 3), layout="constrained")
    times = np.linspace(1, 1e-3, STEPS + 1)
    for panel, (title, process, solver) in zip(panels, PATHS, strict=True):
        side = SIDE * max(1.0, float(prior_std(process, 1.0)) / 1.2)
        density = density_of(process, times[::-1], np.linspace(-side, side, 300))
        panel.imshow(density, extent=(0, 1, -side, side), origin="lower", aspect="auto", cmap="Blues", vmax=1)
        panel.plot(times, travelled(process, solver, times), color="#b5472f", linewidth=0.7)
        panel.set(title=title, xlabel="t, from data to noise", yticks=[], ylim=(-side, side))
    return figure


def travelled(process: Process, solver: Solver, times: np.ndarray) -> np.ndarray:
    """States of LINES samples at all times, (T, LINES); they start at even quantiles of the prior."""
    quantiles = jax.scipy.special.ndtri((jnp.arange(LINES) + 0.5) / LINES)
    x = prior_std(process, times[0]) * quantiles[:, None]

    def denoiser(x, t):
        return DATA.denoised(process, x, t)

    keys = row_keys(0, jnp.arange(LINES))
    return np.asarray(integrate(solver, process, denoiser, x, times, keys=keys, trajectory=True))[..., 0]


def density_of(process: Process, times: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The density of x_t by x and time, each time's by its largest; the root, to show the thin too."""
    column = jnp.asarray(x)[:, None]
    at = jax.jit(lambda t: DATA.log_density(process, column, jnp.full(len(column), t)))
    density = np.stack([np.exp(at(jnp.float32(t))) for t in times[:: STEPS // 100]], axis=1)
    return np.sqrt(density / density.max(axis=0))


def clocks() -> plt.Figure:
    """log-SNR against time."""
    figure, panel = plt.subplots(figsize=(5, 3.2), layout="constrained")
    t = np.linspace(2e-3, 1 - 2e-3, 300, dtype=np.float32)
    for i, process in enumerate(PROCESSES):  # VP and DDPM share a line, and so do two others
        clock = jax.jit(lambda t, p=process: log_snr(p, t))(t)
        panel.plot(t, 2 * np.asarray(clock), "-" if i < 6 else "--", label=type(process).__name__)
    panel.set(xlabel="t, from data to noise", ylabel="log (alpha / sigma)²", ylim=(-14, 14))
    panel.legend(fontsize="small", ncols=2)
    return figure


def steps(directories: list[Path]) -> np.ndarray:
    """Rows of ten digits: of each run one for each number of evaluations, from the same noise in all rows."""
    rows = []
    for directory in directories:
        task = config.read(directory / "config.json")
        parts, _ = read_weights(directory, task)
        words = task.data.class_names
        for number in EVALUATIONS:
            sampler = replace(task.sampler, steps=number, guidance=1.0)
            rows.append(to_uint8(task.sample(parts.trained, words, seed=3, sampler=sampler)))
    canvas = grid(np.concatenate(rows), columns=len(rows[0]))
    return canvas[..., 0].repeat(4, 0).repeat(4, 1)


if __name__ == "__main__":
    main(tyro.cli(Pictures))
