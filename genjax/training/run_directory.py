"""The run directory: config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/, log.txt and model.safetensors.

It documents itself: sample.py and the evaluation rebuild the task from config.json alone, and take the weights from the
newest checkpoint, or, where there is none (a small run that ships with the project), from model.safetensors.
"""

import tempfile
from pathlib import Path
from typing import Any

from genjax import config
from genjax.errors import InputError

MAY_CHANGE = ("mesh.", "checkpoint.") + tuple(
    f"train.{name}" for name in ("log_every", "sample_every", "validate_every", "data_threads", "max_skipped")
)
"""Fields that leave the arithmetic of a run as it is, and may differ when it resumes."""

SHIPPED = Path(__file__).parents[2] / "pretrained" / "sd3-nano"
"""The small trained run that ships with the repository."""


def open_run(directory: Path, task: Any) -> None:
    """Make `directory` the run directory of `task`, or see that it already is.

    Raises InputError when it holds a run of another config or other files, or cannot be written.
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
    if record.exists():
        changed = config.differences(config.read(record), task)
        refused = [change for change in changed if not change[0].startswith(MAY_CHANGE)]
        if refused:
            told = ", ".join(f"{name} is {there!r} there and {here!r} here" for name, there, here in refused[:3])
            more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
            raise InputError(f"{directory} holds a run of another config ({told}{more}); give another --workdir")
        if not changed:
            return
    config.save(task, record)


def find_run(directory: Path | None, *, runs: Path = Path("runs")) -> Path:
    """`directory`, or the newest run below `runs` with weights, or the run that ships with the project.

    Raises InputError when there is none.
    """
    if directory is not None:
        if not (directory / "config.json").is_file():
            raise InputError(f"{directory} is not a run directory: it has no config.json")
        return directory
    found = [path.parent for path in runs.glob("*/config.json") if _has_weights(path.parent)]
    if found:
        return max(found, key=lambda run: (run / "config.json").stat().st_mtime)
    if SHIPPED.is_dir():
        return SHIPPED
    raise InputError(f"there is no trained run below {runs}: train one first, or give --workdir")


def _has_weights(directory: Path) -> bool:
    checkpoints = directory / "checkpoints"
    return (directory / "model.safetensors").is_file() or (checkpoints.is_dir() and any(checkpoints.iterdir()))
