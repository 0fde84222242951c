"""The progress bar of a training run: rate, time left, loss and memory."""

import contextlib
import resource
import sys
from collections.abc import Iterator, Mapping

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "progress_bar"]


class Bar:
    """A task on a rich progress display."""

    def __init__(self, progress: Progress, total: int, start: int):
        self._progress = progress
        self._task = progress.add_task("training", total=total, completed=start, loss="", memory="", rate="")

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        speed = self._progress.tasks[0].speed
        self._progress.update(self._task, completed=step, rate=f"{speed:.1f} steps/s" if speed else "")

    def show(self, told: Mapping[str, float]) -> None:
        """What stands beside the bar: the loss, or that of each player, and memory."""
        losses = {name: value for name, value in told.items() if name == "loss" or name.startswith("loss/")}
        words = "  ".join(f"{name.removeprefix('loss/')} {value:.4f}" for name, value in losses.items())
        self._progress.update(self._task, loss=words, memory=f"{_memory_in_use() / 2**30:.1f} GiB")


@contextlib.contextmanager
def progress_bar(console: Console, total: int, start: int) -> Iterator[Bar]:
    """A bar on the console, where it is a terminal; log lines go above it."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[memory]}"),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, total, start)


def _memory_in_use() -> int:
    """Bytes in use on the first device, or the peak of this process where the device is the host."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_in_use" in statistics:
        return statistics["bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
