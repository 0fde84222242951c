"""What people look at while a run trains: metrics, numbers on fixed data, and previews of samples.

All of it is made with the averaged parameters and from fixed seeds; none of it touches the state of the run. What has
been measured and not yet told is plain data that a checkpoint records, so that the curves of a run that was killed are
those of one that was not.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax.parallel.host import own_copy
from genjax.runs.parts import Parts
from genjax.training.players import LONE
from genjax.training.state import TrainState
from genjax.training.task import Task
from genjax.training.update import Told
from genjax.training.writers import MetricWriter

__all__ = ["Report", "Untold"]

log = logging.getLogger(__name__)

SHOWN = ("loss", "validation_loss", "gradient_norm", "steps_per_second")
"""What a line of the log holds, of each player; metrics.jsonl holds everything."""

Untold = dict[str, list[float]]
"""(sum, weight) by name, added up over the steps since the last line."""


class Report:
    """The metrics of a run since they were last told, and the files they go to. Only the first process writes."""

    def __init__(self, task: Task, directory: Path, start: int, *, untold: Mapping[str, Any] | None = None):
        self._task, self._directory = task, directory
        self._writer = MetricWriter(directory, resume_step=start) if jax.process_index() == 0 else None
        self._untold: Untold = {name: list(pair) for name, pair in (untold or {}).items()}
        self._since, self._clock = start, time.perf_counter()

    @property
    def untold(self) -> Untold:
        """What was measured and not yet told, for the record of a checkpoint."""
        return {name: list(pair) for name, pair in self._untold.items()}

    def is_due(self, step: int) -> bool:
        """Whether there is something to tell after this step."""
        train = self._task.train
        every = (train.log_every, train.validate_every, train.sample_every)
        return step == train.steps or any(step % each == 0 for each in every)

    def read(self, told: Told) -> None:
        """Take the metrics of a step from the device.

        Raises FloatingPointError when `train.max_skipped` steps in a row were not finite.
        """
        told = jax.device_get(told)
        for name, pair in told.means.items():
            total = self._untold.setdefault(name, [0.0, 0.0])
            for i, value in enumerate(pair):
                total[i] += float(value)
        bad = int(told.skipped_in_a_row)
        if bad:
            log.warning("a step was skipped: its loss or gradient is not finite (%d in a row)", bad)
        if bad >= self._task.train.max_skipped:
            raise FloatingPointError(
                f"{bad} steps in a row had a loss or gradient that is not finite; all were skipped, the run gives up"
            )

    def tell(self, step: int, state: TrainState, examples_skipped: int) -> dict[str, float]:
        """Write what is due after `step`: means since the last time, and what is measured now. Returns all of it."""
        told = {name: total / weight if weight else float("nan") for name, (total, weight) in self._untold.items()}
        idle = {name for name, (_, weight) in self._untold.items() if not weight}
        train, last = self._task.train, step == self._task.train.steps
        passed, seconds = step - self._since, time.perf_counter() - self._clock
        validating, sampling = (last or step % every == 0 for every in (train.validate_every, train.sample_every))
        # Of a state that is divided among processes each has to give its share, whoever looks at it.
        averaged = own_copy(state.averaged) if validating or sampling else None
        if self._writer is not None:
            told |= self._learning_rates(state.updates) | {
                "steps_per_second": passed / seconds,
                "samples_per_second": passed * train.batch_size / seconds,
                "examples_skipped": examples_skipped,
            }
            if validating:
                told |= self._task.validate(averaged)
            if sampling:
                self._preview(step, averaged)
            self._writer.write(step, told)
            shown = [n for n in told if n.partition("/")[0] in SHOWN and "/t=" not in n and n not in idle]
            log.info("step %d  %s", step, "  ".join(f"{name} {told[name]:.4g}" for name in shown))
        self._untold.clear()
        self._since, self._clock = step, time.perf_counter()
        return told

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()

    def _learning_rates(self, updates: Mapping[str, Any]) -> dict[str, float]:
        rates = {}
        for name, player in self._task.players().items():
            schedule = player.optimizer.schedule(player.moves(self._task.train.steps))
            label = "learning_rate" if name == LONE else f"learning_rate/{name}"
            rates[label] = float(schedule(max(int(np.asarray(updates[name])) - 1, 0)))
        return rates

    def _preview(self, step: int, averaged: Parts) -> None:
        folder = self._directory / "samples"
        folder.mkdir(exist_ok=True)
        request = self._task.request("preview")
        for output in request(self._task, averaged):
            output.record(folder, step, self._writer)
