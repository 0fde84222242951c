"""Metric writers: metrics.jsonl, TensorBoard events and log.txt of a run directory."""

import html
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.logging import RichHandler
from tensorboardX import SummaryWriter

__all__ = ["MetricWriter", "log_to"]

log = logging.getLogger(__name__)


class MetricWriter:
    """Appends metrics of training steps; on resume it first forgets what lies after the restored step."""

    def __init__(self, directory: Path, *, resume_step: int = 0):
        path = directory / "metrics.jsonl"
        if path.exists():
            _keep_until(path, resume_step)
        self._lines = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(
            str(directory / "tensorboard"), purge_step=resume_step + 1 if resume_step else None
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of JSON, {"step": step, name: number or null, ...}, and one TensorBoard scalar per name."""
        numbers = {name: float(value) if np.isfinite(value) else None for name, value in metrics.items()}
        self._lines.write(json.dumps({"step": step} | numbers) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, float(value), step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image (H, W, C) uint8 for TensorBoard."""
        self._events.add_image(name, image, step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        """A text for TensorBoard, and quoted for the log, where it is one line."""
        self._events.add_text(name, f"<pre>{html.escape(text)}</pre>", step)
        log.info("%s at step %d: %r", name, step, text)

    def number(self, step: int, name: str, value: float) -> None:
        """A number for TensorBoard."""
        self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._lines.close()
        self._events.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a last line that was cut off."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")


def log_to(directory: Path, console: Console) -> logging.Logger:
    """The logger of genjax, on the console and in the directory's log.txt."""
    logger = logging.getLogger("genjax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    if console.is_terminal:
        shown = RichHandler(console=console, show_path=False, show_level=False, markup=False)
    else:
        shown = logging.StreamHandler(console.file)
    kept = logging.FileHandler(directory / "log.txt", encoding="utf-8")
    kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in (shown, kept):
        logger.addHandler(handler)
    return logger
