"""What a denoising system can be asked for: samples, and figures of samples, with and without classes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from genjax.diffusion.solvers import Solver
from genjax.errors import InputError
from genjax.keys import check_seed
from genjax.runs.outputs import Door, Frames, Images, Numbers, Output, Request
from genjax.runs.parts import Parts
from genjax.tasks.caption_figures import caption_figures
from genjax.tasks.image_evaluation import image_figures

__all__ = [
    "DrawClass",
    "DrawImages",
    "DrawPreview",
    "DrawPrompt",
    "Drawing",
    "JudgeCaptions",
    "JudgeImages",
    "in_turn",
    "request",
]


def request(task: Any, door: Door) -> Request:
    """What can be asked at a door, with the defaults of the task's sampler."""
    given = {"steps": task.sampler.steps, "guidance": task.sampler.guidance, "solver": task.sampler.solver}
    if door == "preview":
        return DrawPreview()
    if door == "sample":
        return {"prompt": DrawPrompt, "label": DrawClass, "nothing": DrawImages}[task.condition.asked_by](**given)
    captioned = task.condition.asked_by == "prompt" and not task.data.class_names
    return JudgeCaptions(**given) if captioned else JudgeImages(**given)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Options that samples and their evaluation share."""

    steps: int
    """Steps of the solver."""
    guidance: float
    """Scale of classifier-free guidance, 1 for none."""
    solver: Solver
    """Solver of the sampling ODE."""
    seed: int = 0
    """Seed of the noise; sample i depends on the seed, i and what it is to show alone."""

    def sampler(self, task: Any) -> Any:
        """The run's sampler with what was asked for. Raises InputError where that cannot be done."""
        check_seed("--seed", self.seed)
        sampler = replace(task.sampler, steps=self.steps, guidance=self.guidance, solver=self.solver)
        task.check_sampler(sampler)
        return sampler

    def told(self, task: Any) -> dict[str, float | int | str]:
        """How samples were drawn, without which figures of them say nothing."""
        return {
            "solver": type(self.solver).__name__,
            "steps": self.steps,
            "nfe": self.sampler(task).evaluations,
            "guidance": self.guidance,
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class DrawImages(Drawing):
    """Draw samples, of each class or caption of the data in turn where there are any."""

    num: int = 16
    """Number of samples."""
    trajectory: bool = False
    """Also write trajectory.gif, the way from noise to the samples."""

    @property
    def wish(self) -> str | None:
        """What all samples are to show; None for whatever the data has, in turn."""
        return None

    def check(self, task: Any) -> None:
        if self.num < 1:
            raise InputError(f"--num is the number of samples, at least 1, not {self.num}")
        self.sampler(task)
        if self.wish is not None:
            task.condition.asked([self.wish], task.data)

    def words(self, task: Any) -> list[str]:
        """What each sample is to show."""
        wishes = [words[0] for words in task.condition.wishes(task.data)] if self.wish is None else [self.wish]
        return [wishes[i % len(wishes)] for i in range(self.num)]

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        words, sampler = self.words(task), self.sampler(task)
        start = time.perf_counter()
        states = task.sample(parts.trained, words, seed=self.seed, sampler=sampler, trajectory=self.trajectory)
        said = (
            f"{self.num} samples: {type(sampler.solver).__name__}, {sampler.steps} steps, guidance"
            f" {sampler.guidance:g}, {sampler.evaluations} network evaluations each, seed {self.seed},"
            f" {time.perf_counter() - start:.1f} s with compilation"
        )
        images = states[-1] if self.trajectory else states
        yield Images(images, words, said=said, arrays={"seed": self.seed})
        if self.trajectory:
            yield Frames(states)


@dataclass(frozen=True, kw_only=True)
class DrawPrompt(DrawImages):
    """Draw samples of a text."""

    prompt: str | None = None
    """Text to draw; the captions of the training data in turn when not given."""

    @property
    def wish(self) -> str | None:
        return self.prompt


@dataclass(frozen=True, kw_only=True)
class DrawClass(DrawImages):
    """Draw samples of a class."""

    label: str | None = None
    """Name of the class to draw, or its index; all classes in turn when not given."""

    @property
    def wish(self) -> str | None:
        return self.label


@dataclass(frozen=True)
class DrawPreview:
    """A grid of samples with four rows, and a column for each of up to ten things that the data has, or ten columns."""

    def check(self, task: Any) -> None:
        """Nothing is asked that could be wrong."""

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        wishes = [words[0] for words in task.condition.wishes(task.data)[:10]]
        words = wishes * 4 if len(wishes) > 1 else wishes * 40
        yield Images(task.sample(parts.trained, words, seed=0), words, columns=len(words) // 4)


@dataclass(frozen=True, kw_only=True)
class JudgeImages(Drawing):
    """Measure samples of what the data has, in turn."""

    num: int = 500
    """Number of samples."""

    def check(self, task: Any) -> None:
        if self.num < 2:
            raise InputError(f"--num is the number of samples, at least 2 for a covariance, not {self.num}")
        self.sampler(task)

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        words, labels = in_turn(task.condition.wishes(task.data), self.num)
        samples = task.sample(parts.trained, words, seed=self.seed, sampler=self.sampler(task))
        asked = task.data.class_names and task.condition.asked_by != "nothing"
        yield Numbers(image_figures(task.data, samples, labels if asked else None) | self.told(task))


@dataclass(frozen=True, kw_only=True)
class JudgeCaptions(Drawing):
    """Measure samples of captions, where there are no classes, by a judge that is trained on real pictures first."""

    num: int = 200
    """Number of samples of each kind of caption: trained, held out, held out in this pairing."""
    judge_steps: int = 800
    """Steps that the judge is trained for."""

    def check(self, task: Any) -> None:
        if self.num < 2 or self.judge_steps < 1:
            raise InputError(f"--num is at least 2 and --judge_steps at least 1, not {self.num} and {self.judge_steps}")
        self.sampler(task)

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        sampler = self.sampler(task)

        def draw(prompts: list[str]) -> np.ndarray:
            return task.sample(parts.trained, prompts, seed=self.seed, sampler=sampler)

        figures = caption_figures(task.data, draw, self.num, judge_steps=self.judge_steps, seed=self.seed)
        yield Numbers(figures | self.told(task))


def in_turn(wishes: Sequence[Sequence[str]], number: int) -> tuple[list[str], np.ndarray]:
    """`number` words and the index of the class of each: the classes in turn, and in each round its next words."""
    classes = np.arange(number) % len(wishes)
    rounds = np.arange(number) // len(wishes)
    return [wishes[c][r % len(wishes[c])] for c, r in zip(classes, rounds, strict=True)], classes
