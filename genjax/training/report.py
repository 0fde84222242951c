"""What people look at while a run trains: metrics, losses on fixed data, and pictures of samples.

All of it is drawn with the averaged parameters and from fixed seeds; none of it touches the state of the run.
"""

import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from genjax.training import pictures
from genjax.training.update import TrainState
from genjax.training.writers import MetricWriter

log = logging.getLogger(__name__)

SHOWN = ("loss", "validation_loss", "gradient_norm", "steps_per_second")
"""What a line of the log holds; metrics.jsonl holds everything."""


class Report:
    """The metrics of a run since they were last told, and the files they go to. Only the first process writes."""

    def __init__(self, task: Any, directory: Path, start: int):
        self._task, self._directory = task, directory
        self._schedule = task.optimizer.schedule(task.train.steps)
        self._writer = MetricWriter(directory, resume_step=start) if jax.process_index() == 0 else None
        self._unsaid: list[dict[str, np.ndarray]] = []
        self._since, self._clock = start, time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Whether there is something to tell after this step."""
        train = self._task.train
        return any(step % every == 0 for every in (train.log_every, train.validate_every, train.sample_every))

    def read(self, metrics: dict[str, Array]) -> None:
        """Take the metrics of a step from the device.

        Raises FloatingPointError when `train.max_skipped` steps in a row were not finite.
        """
        self._unsaid.append(jax.device_get(metrics))
        bad = int(self._unsaid[-1]["skipped_in_a_row"])
        if bad:
            log.warning("a step was skipped: its loss or gradient is not finite (%d in a row)", bad)
        if bad >= self._task.train.max_skipped:
            raise FloatingPointError(
                f"{bad} steps in a row had a loss or gradient that is not finite; all were skipped, the run gives up"
            )

    def tell(self, step: int, state: TrainState, examples_skipped: int) -> float:
        """Write what is due after `step`: means since the last time, and what is measured now. Returns the loss."""
        told, last = self._means(), step == self._task.train.steps
        passed = step - self._since
        seconds = time.perf_counter() - self._clock
        if self._writer is not None:
            told |= {
                "learning_rate": float(self._schedule(max(int(state.updates) - 1, 0))),
                "steps_per_second": passed / seconds,
                "images_per_second": passed * self._task.train.batch_size / seconds,
                "examples_skipped": examples_skipped,
            }
            average = local(state.ema)
            if step % self._task.train.validate_every == 0 or last:
                told |= self._task.validate(average)
            if step % self._task.train.sample_every == 0 or last:
                self._save_picture(step, self._task.preview(average))
            self._writer.write(step, told)
            log.info("step %d  %s", step, "  ".join(f"{name} {told[name]:.4g}" for name in SHOWN if name in told))
        self._unsaid.clear()
        self._since, self._clock = step, time.perf_counter()
        return told["loss"]

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()

    def _save_picture(self, step: int, picture: np.ndarray) -> None:
        folder = self._directory / "samples"
        folder.mkdir(exist_ok=True)
        pictures.save_png(picture, folder / f"step_{step:06d}.png", smallest_side=256)
        self._writer.picture(step, "samples", picture)

    def _means(self) -> dict[str, float]:
        """The mean over the steps since the last time, of those whose loss was finite."""
        finite = [step for step in self._unsaid if not step["skipped_in_a_row"]]
        names = self._unsaid[0]
        return {name: float(np.mean([step[name] for step in finite])) if finite else float("nan") for name in names}


def local(tree: PyTree[Array]) -> PyTree[Array]:
    """This process' copy of a replicated tree, on one device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
