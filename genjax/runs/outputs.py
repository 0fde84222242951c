"""What a trained run is asked for and what it answers: requests, and outputs that show and write themselves.

A task answers `request(door)` with a `Request`, whose fields are the options of that door (`sample`, `evaluate`, or
`preview` while it trains). It is checked before any weights are read; called with them, it gives outputs one after
another, each as soon as it is there. Doors and the training loop know nothing else of a system.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from genjax.runs import pictures
from genjax.runs.parts import Parts

__all__ = ["Arrays", "Door", "Events", "Frames", "Images", "Numbers", "Output", "Request", "Text", "say"]

Door = Literal["sample", "evaluate", "preview"]
"""Who asks: sample.py, python -m genjax.evaluate, or the training loop."""


class Events(Protocol):
    """Where previews go beside files (TensorBoard's events)."""

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def number(self, step: int, name: str, value: float) -> None: ...


class Output(Protocol):
    """Something that a run has made."""

    def show(self, console: Console) -> None:
        """Tell a person at a terminal; a text that is still being written is shown as it comes."""

    def write(self, folder: Path) -> Path:
        """Write everything below `folder`, which exists; returns the file to look at first."""

    def record(self, folder: Path, step: int, events: Events) -> None:
        """Keep it as a preview of training step `step`: one small file in `folder`, and an event."""


class Request(Protocol):
    """A frozen dataclass whose fields are the options of a door; `task.request(door)` gives it with its defaults."""

    def check(self, task: Any) -> None:
        """Raise InputError for what cannot be done; no weights have been read yet."""

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        """The outputs; `parts.trained` are the weights to use, averaged where the run keeps an average."""


@dataclass(frozen=True)
class Images:
    """Pictures: grid.png, one PNG each, and samples.npz."""

    images: Float[np.ndarray, "N H W C"]
    """In [-1, 1]; values outside are clipped."""
    captions: Sequence[str] = ()
    """What each was asked to show, if anything; `prompts` in samples.npz."""
    columns: int | None = None
    """Columns of the grid; a square when None."""
    said: str = ""
    """How they were drawn, in a line."""
    arrays: Mapping[str, Any] = field(default_factory=dict)
    """What else belongs into samples.npz, such as the seed."""

    def grid(self) -> np.ndarray:
        """All pictures in one, uint8 (H, W, C)."""
        return pictures.grid(pictures.to_uint8(self.images), columns=self.columns)

    def show(self, console: Console) -> None:
        say(console, self.said or f"{len(self.images)} pictures")

    def write(self, folder: Path) -> Path:
        images = pictures.to_uint8(self.images)
        for i, image in enumerate(images):
            pictures.save_png(image, folder / f"{i:04d}.png")
        captions = {"prompts": np.array(self.captions)} if self.captions else {}
        np.savez(folder / "samples.npz", images=images, **captions, **{k: np.array(v) for k, v in self.arrays.items()})
        pictures.save_png(self.grid(), folder / "grid.png", smallest_side=512)
        return folder / "grid.png"

    def record(self, folder: Path, step: int, events: Events) -> None:
        grid = self.grid()
        pictures.save_png(grid, folder / f"step_{step:06d}.png", smallest_side=256)
        events.image(step, "samples", grid)


@dataclass(frozen=True)
class Frames:
    """The way to the samples: trajectory.gif."""

    frames: Float[np.ndarray, "F N H W C"]
    """In [-1, 1]; values outside are clipped."""

    def show(self, console: Console) -> None:
        say(console, f"the way there in {len(self.frames)} frames")

    def write(self, folder: Path) -> Path:
        grids = np.stack([pictures.grid(frame) for frame in pictures.to_uint8(self.frames)])
        pictures.save_gif(grids, folder / "trajectory.gif", smallest_side=512)
        return folder / "trajectory.gif"

    def record(self, folder: Path, step: int, events: Events) -> None:
        grids = np.stack([pictures.grid(frame) for frame in pictures.to_uint8(self.frames)])
        pictures.save_gif(grids, folder / f"step_{step:06d}.gif", smallest_side=256)


@dataclass(frozen=True)
class Arrays:
    """Arrays for another program: NAME.npz."""

    name: str
    arrays: Mapping[str, np.ndarray]
    said: str
    """What they are, in a line."""

    def show(self, console: Console) -> None:
        say(console, self.said)

    def write(self, folder: Path) -> Path:
        np.savez(folder / f"{self.name}.npz", **self.arrays)
        return folder / f"{self.name}.npz"

    def record(self, folder: Path, step: int, events: Events) -> None:
        np.savez(folder / f"step_{step:06d}_{self.name}.npz", **self.arrays)
        events.text(step, f"samples/{self.name}", self.said)


class Text:
    """A text that comes in pieces, after a prompt: NAME.txt."""

    def __init__(self, prompt: str, pieces: Iterable[str], *, name: str = "0000"):
        self.prompt, self.name = prompt, name
        self._pieces = iter(pieces)
        self._come: list[str] = []

    def stream(self) -> Iterator[str]:
        """The pieces after the prompt, those that have come and then the others as they come."""
        yield from self._come
        for piece in self._pieces:
            self._come.append(piece)
            yield piece

    def whole(self) -> str:
        """Prompt and text; waits for the end."""
        return self.prompt + "".join(self.stream())

    def show(self, console: Console) -> None:
        console.print(self.prompt, style="bold", end="", markup=False, highlight=False, soft_wrap=True)
        for piece in self.stream():
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            console.file.flush()
        console.print()

    def write(self, folder: Path) -> Path:
        (folder / f"{self.name}.txt").write_text(self.whole(), encoding="utf-8")
        return folder / f"{self.name}.txt"

    def record(self, folder: Path, step: int, events: Events) -> None:
        (folder / f"step_{step:06d}_{self.name}.txt").write_text(self.whole(), encoding="utf-8")
        events.text(step, f"samples/{self.name}", self.whole())


@dataclass(frozen=True)
class Numbers:
    """Named figures: evaluation.json holds the newest, evaluations.jsonl all of them, a line each."""

    values: Mapping[str, float | int | str]
    title: str = ""

    def show(self, console: Console) -> None:
        table = Table(title=self.title or None, show_header=False)
        for name, value in self.values.items():
            table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
        console.print(table)

    def write(self, folder: Path) -> Path:
        with (folder / "evaluations.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(self.values) + "\n")
        (folder / "evaluation.json").write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")
        return folder / "evaluation.json"

    def record(self, folder: Path, step: int, events: Events) -> None:
        for name, value in self.values.items():
            if not isinstance(value, str):
                events.number(step, f"samples/{name}", float(value))


def say(console: Console, line: str) -> None:
    """A line on the console as it is, folded by the terminal alone."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
