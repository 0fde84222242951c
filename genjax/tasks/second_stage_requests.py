"""What a second stage can be asked for: samples, and figures of samples and of the first stage under them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from genjax.errors import InputError
from genjax.keys import check_seed
from genjax.runs.outputs import Door, Images, Numbers, Output, Request
from genjax.runs.parts import Parts
from genjax.tasks.caption_figures import caption_figures
from genjax.tasks.code_sampling import CodeSampler
from genjax.tasks.denoising_requests import in_turn
from genjax.tasks.image_evaluation import image_figures
from genjax.tasks.tokeniser_requests import JudgeReconstructions

__all__ = [
    "DrawCodes",
    "DrawCodesOfClass",
    "DrawCodesOfPrompt",
    "JudgeCodes",
    "JudgeCodesOfCaptions",
    "PreviewCodes",
    "first_stage_figures",
    "request",
]


def request(task: Any, door: Door) -> Request:
    """What can be asked at a door, with the defaults of the task's sampler."""
    asked_by = task.condition.asked_by
    if door == "preview":
        return PreviewCodes()
    if door == "sample":
        kinds = {"prompt": DrawCodesOfPrompt, "label": DrawCodesOfClass, "nothing": DrawCodes}
        return kinds[asked_by](sampler=task.sampler)
    captioned = asked_by == "prompt" and not task.pictures.class_names
    return JudgeCodesOfCaptions(sampler=task.sampler) if captioned else JudgeCodes(sampler=task.sampler)


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """Options that samples and their evaluation share."""

    sampler: CodeSampler
    """How codes are drawn."""
    seed: int = 0
    """Seed of the draws; sample i depends on the seed, i and what it is to show alone."""

    def check_drawing(self, task: Any) -> None:
        """Raise InputError where samples cannot be drawn so."""
        check_seed("--seed", self.seed)
        kinds = type(task.sampler).__name__, type(self.sampler).__name__
        if kinds[0] != kinds[1]:
            raise InputError(f"--sampler of this run is {kinds[0]}, not {kinds[1]}")
        task.check_sampler(self.sampler)

    def check_size(self, task: Any) -> None:
        """Raise InputError where samples are not of the size of the real pictures that they are compared with."""
        if self.sampler.size not in (None, tuple(task.tokeniser.code_shape[:2])):
            raise InputError(
                "--sampler.grid makes pictures of another size than the real ones that they are measured by"
            )

    def draw(self, task: Any, parts: Parts, words: list[str]) -> np.ndarray:
        """The pictures of the words."""
        return task.sample(parts, words, seed=self.seed, sampler=self.sampler)


@dataclass(frozen=True, kw_only=True)
class DrawCodes(_Drawing):
    """Draw samples, of each class or caption of the data in turn where there are any."""

    num: int = 16
    """Number of samples."""

    @property
    def wish(self) -> str | None:
        """What all samples are to show; None for whatever the data has, in turn."""
        return None

    def check(self, task: Any) -> None:
        if self.num < 1:
            raise InputError(f"--num is the number of samples, at least 1, not {self.num}")
        self.check_drawing(task)
        if self.wish is not None:
            task.condition.asked([self.wish], task.pictures)

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        wishes = [words[0] for words in task.condition.wishes(task.pictures)] if self.wish is None else [self.wish]
        words = [wishes[i % len(wishes)] for i in range(self.num)]
        began = time.perf_counter()
        images = self.draw(task, parts, words)
        said = f"{self.num} samples: {self.sampler.told(task)}, seed {self.seed}"
        said += f", {time.perf_counter() - began:.1f} s with compilation"
        yield Images(images, words, said=said, arrays={"seed": self.seed})


@dataclass(frozen=True, kw_only=True)
class DrawCodesOfClass(DrawCodes):
    """Draw samples of a class."""

    label: str | None = None
    """Name of the class to draw, or its index; all classes in turn when not given."""

    @property
    def wish(self) -> str | None:
        return self.label


@dataclass(frozen=True, kw_only=True)
class DrawCodesOfPrompt(DrawCodes):
    """Draw samples of a text."""

    prompt: str | None = None
    """Text to draw; the captions of the training data in turn when not given."""

    @property
    def wish(self) -> str | None:
        return self.prompt


@dataclass(frozen=True)
class PreviewCodes:
    """A grid of samples with four rows, and a column for each of up to ten things that the data has, or ten columns."""

    def check(self, task: Any) -> None:
        """Nothing is asked that could be wrong."""

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        wishes = [words[0] for words in task.condition.wishes(task.pictures)[:10]]
        words = wishes * 4 if len(wishes) > 1 else wishes * 40
        yield Images(task.sample(parts, words, seed=0), words, columns=len(words) // 4)


@dataclass(frozen=True, kw_only=True)
class JudgeCodes(_Drawing):
    """Measure samples of what the data has in turn, and what the first stage makes of real pictures."""

    num: int = 500
    """Number of samples."""

    def check(self, task: Any) -> None:
        if self.num < 2:
            raise InputError(f"--num is the number of samples, at least 2 for a covariance, not {self.num}")
        self.check_drawing(task)
        self.check_size(task)

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        words, labels = in_turn(task.condition.wishes(task.pictures), self.num)
        asked = task.pictures.class_names and task.condition.asked_by != "nothing"
        figures = image_figures(task.pictures, self.draw(task, parts, words), labels if asked else None)
        figures |= {"sampler": self.sampler.told(task), "seed": self.seed}
        yield Numbers(figures | first_stage_figures(task, parts))


@dataclass(frozen=True, kw_only=True)
class JudgeCodesOfCaptions(_Drawing):
    """Measure samples of captions, where there are no classes, by a judge that is trained on real pictures first."""

    num: int = 200
    """Number of samples of each kind of caption: trained, held out, held out in this pairing."""
    judge_steps: int = 800
    """Steps that the judge is trained for."""

    def check(self, task: Any) -> None:
        if self.num < 2 or self.judge_steps < 1:
            raise InputError(f"--num is at least 2 and --judge_steps at least 1, not {self.num} and {self.judge_steps}")
        self.check_drawing(task)
        self.check_size(task)

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        def draw(prompts: list[str]) -> np.ndarray:
            return self.draw(task, parts, prompts)

        figures = caption_figures(task.pictures, draw, self.num, judge_steps=self.judge_steps, seed=self.seed)
        figures |= {"sampler": self.sampler.told(task), "seed": self.seed}
        yield Numbers(figures | first_stage_figures(task, parts))


def first_stage_figures(task: Any, parts: Parts) -> dict[str, float | int | str]:
    """What the first stage makes of held-out pictures, as figures of their own names."""
    first = task.first_stage.parts(parts.fixed["first_stage"])
    (found,) = JudgeReconstructions()(task.tokeniser, first)
    return {f"first_stage/{name}": value for name, value in found.values.items()}
