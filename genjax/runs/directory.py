"""The run directory: config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/, log.txt and model.safetensors.

It documents itself: sample.py and the evaluation rebuild the task from config.json alone, and take the weights from the
newest checkpoint, or, where there is none (a small run that ships with the project), from model.safetensors. Parts that
hold still lie in fixed.safetensors, so that a run needs no other run to go on.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from genjax import config
from genjax.errors import InputError

__all__ = [
    "RUNS",
    "Found",
    "Refusal",
    "find_run",
    "is_shipped",
    "open_run",
    "shipped_runs",
    "steps_saved",
    "trained_runs",
]

RUNS = Path("runs")
"""Where runs are looked for."""

SHIPPED = Path(__file__).parents[2] / "pretrained"
"""Small trained runs that ship with the repository."""

DEFAULT_SHIPPED = "sd3-nano"
"""The one that is taken where nothing is named and nothing has been trained."""

Refusal = Callable[[Any, Any], str | None]


def open_run(directory: Path, task: Any, *, goes_on: Refusal = lambda there, here: "") -> None:
    """Make `directory` the run directory of `task`, or see that it already is.

    A run of another config goes on where every field that differs says of itself that it may (`may_change`). Where the
    number of steps alone differs, `goes_on(config there, config here)` gives None if that is right too, or a sentence.
    Raises InputError when the directory holds a run of another config or other files, or cannot be written.
    """
    record = directory / "config.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        strangers = not record.exists() and any(directory.iterdir())
        tempfile.TemporaryFile(dir=directory).close()  # The only true test of whether it can be written to.
    except OSError as error:
        raise InputError(f"the run directory {directory} cannot be written to: {error.strerror}") from None
    if strangers:
        raise InputError(f"{directory} holds files but no config.json: a run needs a new or empty directory")
    allow = config.allowed(config.packages_of(task))
    if record.exists():
        there = config.read(record, allow=allow)
        changed = config.differences(there, task)
        refused = [change for change in changed if not config.may_change(task, change[0])]
        reason = goes_on(there, task) if [name for name, _, _ in refused] == ["train.steps"] else ""
        if refused and reason is not None:
            told = ", ".join(f"{name} is {there!r} there and {here!r} here" for name, there, here in refused[:3])
            more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
            how = reason or "give another --workdir"
            raise InputError(f"{directory} holds a run of another config ({told}{more}); {how}")
        if not changed:
            return
    config.save(task, record, allow=allow)


class Found(NamedTuple):
    """A run directory, and why it was taken."""

    directory: Path
    why: str


def find_run(named: str | Path | None, *, runs: Path = RUNS) -> Found:
    """The run that is named, or the newest one below `runs` with weights, or the one that ships with the project.

    A name is a directory, or that of a shipped run. Raises InputError when there is none.
    """
    if named is not None:
        for directory in (Path(named), SHIPPED / named):
            if (directory / "config.json").is_file():
                return Found(directory, "as named")
        shipped = ", ".join(run.name for run in shipped_runs())
        raise InputError(f"{named} is not a run directory: it has no config.json (runs that ship: {shipped})")
    if trained := trained_runs(runs):
        return Found(trained[0], f"the newest below {runs}")
    if (SHIPPED / DEFAULT_SHIPPED).is_dir():
        return Found(SHIPPED / DEFAULT_SHIPPED, f"it ships with genjax; there is no trained run below {runs}")
    raise InputError(f"there is no trained run below {runs}: train one first, or give --workdir")


def trained_runs(runs: Path = RUNS) -> list[Path]:
    """The run directories below `runs` that have weights, newest first."""
    found = [path.parent for path in runs.glob("*/config.json") if _has_weights(path.parent)]
    return sorted(found, key=lambda run: (run / "config.json").stat().st_mtime, reverse=True)


def steps_saved(directory: Path) -> list[int]:
    """The steps of which a run has checkpoints; what a killed run left half-written has another name."""
    return sorted(int(path.name) for path in (directory / "checkpoints").glob("*/") if path.name.isdigit())


def shipped_runs() -> list[Path]:
    """The runs that ship with the project, by name."""
    return sorted(path.parent for path in SHIPPED.glob("*/config.json"))


def is_shipped(directory: Path) -> bool:
    """Whether a run ships with the project, so that nothing may be written there."""
    return SHIPPED.resolve() in directory.resolve().parents


def _has_weights(directory: Path) -> bool:
    return (directory / "model.safetensors").is_file() or bool(steps_saved(directory))
