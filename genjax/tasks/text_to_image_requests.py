"""What a text-to-image system can be asked for: samples, and figures of samples, with and without classes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from genjax.diffusion.solvers import Solver
from genjax.errors import InputError
from genjax.keys import check_seed
from genjax.runs.outputs import Frames, Images, Numbers, Output
from genjax.runs.parts import Parts
from genjax.tasks.caption_figures import caption_figures
from genjax.tasks.image_evaluation import image_figures

__all__ = ["DrawImages", "DrawPreview", "Drawing", "JudgeCaptions", "JudgeImages", "prompts_in_turn"]


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
    """Seed of the noise; sample i depends on the seed, i and its prompt alone."""

    def sampler(self, task: Any) -> Any:
        """The run's sampler with what was asked for. Raises InputError where that cannot be done."""
        check_seed("--seed", self.seed)
        return replace(task.sampler, steps=self.steps, guidance=self.guidance, solver=self.solver)

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
    """Draw samples."""

    prompt: str | None = None
    """Text to draw; the captions of the training data in turn when not given."""
    num: int = 16
    """Number of samples."""
    trajectory: bool = False
    """Also write trajectory.gif, the way from noise to the samples."""

    def check(self, task: Any) -> None:
        if self.num < 1:
            raise InputError(f"--num is the number of samples, at least 1, not {self.num}")
        self.sampler(task)
        task.tokenize(self.prompts(task)[:1] if self.prompt is not None else [""])

    def prompts(self, task: Any) -> list[str]:
        """What each sample is to show."""
        captions = [captions[0] for captions in task.captions()] if self.prompt is None else [self.prompt]
        return [captions[i % len(captions)] for i in range(self.num)]

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        prompts, sampler = self.prompts(task), self.sampler(task)
        start = time.perf_counter()
        states = task.sample(parts.trained, prompts, seed=self.seed, sampler=sampler, trajectory=self.trajectory)
        said = (
            f"{self.num} samples: {type(sampler.solver).__name__}, {sampler.steps} steps, guidance"
            f" {sampler.guidance:g}, {sampler.evaluations} network evaluations each, seed {self.seed},"
            f" {time.perf_counter() - start:.1f} s with compilation"
        )
        images = states[-1] if self.trajectory else states
        yield Images(images, prompts, said=said, arrays={"seed": self.seed})
        if self.trajectory:
            yield Frames(states)


@dataclass(frozen=True)
class DrawPreview:
    """A grid of samples with four rows, and a column for each of up to ten captions of the data."""

    def check(self, task: Any) -> None:
        """Nothing is asked that could be wrong."""

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        prompts = [captions[0] for captions in task.captions()[:10]]
        yield Images(task.sample(parts.trained, prompts * 4, seed=0), prompts * 4, columns=len(prompts))


@dataclass(frozen=True, kw_only=True)
class JudgeImages(Drawing):
    """Measure samples whose prompts are the classes in turn, and each class' captions in turn."""

    num: int = 500
    """Number of samples."""

    def check(self, task: Any) -> None:
        if self.num < 2:
            raise InputError(f"--num is the number of samples, at least 2 for a covariance, not {self.num}")
        self.sampler(task)

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        sampler = self.sampler(task)
        prompts, labels = prompts_in_turn(task.captions(), self.num)
        samples = np.clip(task.sample(parts.trained, prompts, seed=self.seed, sampler=sampler), -1, 1)
        yield Numbers(image_figures(task.data, samples, labels if task.data.class_names else None) | self.told(task))


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
            return np.clip(task.sample(parts.trained, prompts, seed=self.seed, sampler=sampler), -1, 1)

        figures = caption_figures(task.data, draw, self.num, judge_steps=self.judge_steps, seed=self.seed)
        yield Numbers(figures | self.told(task))


def prompts_in_turn(captions: Sequence[Sequence[str]], number: int) -> tuple[list[str], np.ndarray]:
    """`number` prompts and the index of the class of each: the classes in turn, and in each round the next caption."""
    classes = np.arange(number) % len(captions)
    rounds = np.arange(number) // len(captions)
    return [captions[c][r % len(captions[c])] for c, r in zip(classes, rounds, strict=True)], classes
