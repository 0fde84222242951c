"""Measure a trained run: python -m genjax.evaluate --workdir DIR prints a table and writes DIR/evaluation.json."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from genjax import config
from genjax.errors import InputError
from genjax.tasks.evaluation import evaluate
from genjax.training.run_directory import find_run
from genjax.training.weights import read_weights


@dataclass(frozen=True)
class Options:
    """Measure the newest run below runs/, or another, on samples of its averaged weights."""

    workdir: str | None = None
    """Run directory to measure."""
    num: int = 500
    """Number of samples."""
    guidance: float | None = None
    """Scale of classifier-free guidance; as in the run's config when not given."""
    steps: int | None = None
    """Steps of the solver; as in the run's config when not given."""
    seed: int = 0
    """Seed of the noise."""


def main(argv: Sequence[str]) -> None:
    options = config.parse(argv, Options())
    if options.num < 2:
        raise InputError(f"--num is the number of samples, at least 2 for a covariance, not {options.num}")
    directory = find_run(Path(options.workdir) if options.workdir else None)
    task = config.read(directory / "config.json")
    given = {name: getattr(options, name) for name in ("steps", "guidance")}
    sampler = replace(task.sampler, **{name: value for name, value in given.items() if value is not None})

    params, step = read_weights(directory, task)
    results = {"step": step} | evaluate(task, params, number=options.num, sampler=sampler, seed=options.seed)
    path = directory / "evaluation.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    table = Table(title=str(directory), show_header=False)
    for name, value in results.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    config.run(main)
