"""Draw samples from a trained run: python sample.py --prompt "a handwritten seven" --num 16 --out out"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genjax import config
from genjax.diffusion.solvers import SolverName
from genjax.tasks.sampling import save_samples
from genjax.training.run_directory import find_run
from genjax.training.weights import read_weights


@dataclass(frozen=True)
class Options:
    """Draw samples from the newest run below runs/, or from the small one that ships with the project."""

    workdir: str | None = None
    """Run directory to sample from."""
    prompt: str | None = None
    """Text to draw; the captions of the training data in turn when not given."""
    num: int = 16
    """Number of samples."""
    steps: int | None = None
    """Steps of the solver; as in the run's config when not given."""
    guidance: float | None = None
    """Scale of classifier-free guidance, 1 for none; as in the run's config when not given."""
    solver: SolverName | None = None
    """Solver of the sampling ODE; as in the run's config when not given."""
    seed: int = 0
    """Seed of the noise; sample i depends on the seed, i and its prompt alone."""
    trajectory: bool = False
    """Also write trajectory.gif, the way from noise to the samples."""
    out: str = "out"
    """Directory for grid.png, one PNG per sample and samples.npz."""


def main(argv: Sequence[str]) -> None:
    options = config.parse(argv, Options())
    directory = find_run(Path(options.workdir) if options.workdir else None)
    task = config.read(directory / "config.json")
    given = {name: getattr(options, name) for name in ("steps", "guidance", "solver")}
    sampler = replace(task.sampler, **{name: value for name, value in given.items() if value is not None})
    save_samples(
        task,
        lambda: read_weights(directory, task),
        Path(options.out),
        prompt=options.prompt,
        number=options.num,
        sampler=sampler,
        seed=options.seed,
        trajectory=options.trajectory,
    )


if __name__ == "__main__":
    config.run(main)
