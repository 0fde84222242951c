"""What a denoising system can be asked for: samples, and figures of samples, with and without classes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from genjax import config
from genjax.data import real
from genjax.diffusion.solvers import Solver
from genjax.errors import InputError
from genjax.keys import check_seed
from genjax.runs.directory import find_run
from genjax.runs.outputs import Arrays, Door, Frames, Images, Numbers, Output, Request
from genjax.runs.parts import Parts
from genjax.runs.weights import read_weights
from genjax.tasks import sampling
from genjax.tasks.caption_figures import caption_figures
from genjax.tasks.image_evaluation import image_figures
from genjax.tasks.likelihood import levels, likelihood_figures
from genjax.tasks.noisy_classification import Guide, NoisyClassification
from genjax.tasks.spaces import Latents, Pixels
from genjax.tasks.starts import Start, kept_of, picture_of

__all__ = [
    "DrawClass",
    "OF_SAMPLER",
    "DrawImages",
    "DrawPreview",
    "DrawPrompt",
    "Drawing",
    "JudgeCaptions",
    "JudgeImages",
    "in_turn",
    "request",
]


OF_SAMPLER = ("steps", "guidance", "interval", "rescale", "clip_denoised", "solver")
"""What of a run's sampler can be asked otherwise."""


def request(task: Any, door: Door) -> Request:
    """What can be asked at a door, with the defaults of the task's sampler."""
    given = {name: getattr(task.sampler, name) for name in OF_SAMPLER}
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
    interval: tuple[float, float]
    """Between which times it acts, from 0 (data) to 1 (noise)."""
    rescale: float
    """How far it is brought back to the deviation it had without, from 0 to 1."""
    clip_denoised: float | None
    """Largest size of an estimate of the data at each step; None for any."""
    solver: Solver
    """Solver of the sampling ODE."""
    seed: int = 0
    """Seed of the noise; sample i depends on the seed, i and what it is to show alone."""
    classifier: str | None = None
    """Run of a classifier of noised images that leads samples to a class (configs/classifier.py)."""
    classifier_scale: float = 1.0
    """How strongly it leads; 1 is Bayes' rule for a network that knows no class."""

    worse: str | None = None
    """Run of a smaller or younger system, from whose errors samples are led away (autoguidance)."""
    worse_scale: float = 2.0
    """How far they are led, 1 for not at all."""

    def worse_run(self, task: Any) -> tuple[Path, Any] | None:
        """The run of the worse system, if there is one. Raises InputError where it does not fit."""
        if self.worse is None:
            return None
        directory = find_run(self.worse).directory
        other = config.read(directory / "config.json")
        kinds = type(task).__name__, type(other).__name__
        if kinds[0] != kinds[1]:
            raise InputError(f"--worse is a run of {kinds[0]}, and {self.worse} is one of {kinds[1]}")
        sampling.check_worse(task, other, self.sampler(task))
        return directory, other

    def led(self, task: Any) -> sampling.Worse | None:
        """The worse system with its weights."""
        found = self.worse_run(task)
        if found is None:
            return None
        directory, other = found
        return sampling.Worse(other, read_weights(directory, other)[0].trained, self.worse_scale)

    def classification(self, task: Any) -> tuple[Path, NoisyClassification] | None:
        """The run of the classifier, if there is one. Raises InputError where it does not fit."""
        if self.classifier is None:
            return None
        directory = find_run(self.classifier).directory
        classification = config.read(directory / "config.json")
        if not isinstance(classification, NoisyClassification):
            kind = type(classification).__name__
            raise InputError(f"--classifier is a run of NoisyClassification, and {self.classifier} is one of {kind}")
        if not task.noises_data:
            raise InputError("--classifier knows images as the data has them, and this run draws codes of them")
        classification.check_guidance(task.process, task.space, real(task.data))
        return directory, classification

    def guide(self, task: Any, labels: Sequence[int]) -> Guide | None:
        """The classifier with its weights, and the class of each sample."""
        found = self.classification(task)
        if found is None:
            return None
        directory, classification = found
        trained = read_weights(directory, classification)[0].trained
        return Guide(classification, trained, self.classifier_scale, np.asarray(labels))

    def sampler(self, task: Any) -> Any:
        """The run's sampler with what was asked for. Raises InputError where that cannot be done."""
        check_seed("--seed", self.seed)
        told = {name: getattr(self, name) for name in OF_SAMPLER}
        sampler = replace(task.sampler, **told)
        sampling.check(task, sampler)
        return sampler

    def evaluations(self, sampler: Any) -> int:
        """Network evaluations for one sample (NFE), those of the worse system counted."""
        worse = 0 if self.worse is None else replace(sampler, guidance=1.0).evaluations
        return sampler.evaluations + worse

    def told(self, task: Any) -> dict[str, float | int | str]:
        """How samples were drawn, without which figures of them say nothing."""
        return {
            "solver": type(self.solver).__name__,
            "steps": self.steps,
            "nfe": self.evaluations(self.sampler(task)),
            "guidance": self.guidance,
            "seed": self.seed,
            **({} if self.guidance == 1 or self.interval == (0, 1) else {"interval": list(self.interval)}),
            **({} if self.guidance == 1 or self.rescale == 0 else {"rescale": self.rescale}),
            **({} if self.clip_denoised is None else {"clip_denoised": self.clip_denoised}),
            **({} if self.classifier is None else {"classifier_scale": self.classifier_scale}),
            **({} if self.worse is None else {"worse": self.worse, "worse_scale": self.worse_scale}),
        }


@dataclass(frozen=True, kw_only=True)
class DrawImages(Drawing):
    """Draw samples, of each class or caption of the data in turn where there are any."""

    num: int = 16
    """Number of samples."""
    trajectory: bool = False
    """Also write trajectory.gif, the way from noise to the samples."""
    image: str | None = None
    """Picture of the run's size to start from, in place of noise: PNG, JPEG or WebP."""
    strength: float = 0.75
    """Share of the steps taken from --image on, in (0, 1]: how little of it is left."""
    mask: str | None = None
    """Picture of the same size, white where --image is drawn anew, black where it is kept; all anew when not given."""
    inversion: bool = False
    """Start where the probability-flow ODE carries --image, and not from it with fresh noise."""
    wanted: str | None = None
    """Name of the class that --classifier leads to; all in turn when not given."""
    couples: bool = False
    """Write couples.npz alone: samples, unclipped, with the noise of each; reflow learns from it."""

    @property
    def wish(self) -> str | None:
        """What all samples are to show; None for whatever the data has, in turn."""
        return None

    def check(self, task: Any) -> None:
        if self.num < 1:
            raise InputError(f"--num is the number of samples, at least 1, not {self.num}")
        if self.image is None and self.inversion:
            raise InputError("--inversion is of an --image, and none is given")
        if self.image is None and self.mask is not None:
            raise InputError("--mask says what is drawn anew of an --image, and none is given")
        if self.couples:
            self._check_couples(task)
        sampling.check(task, self.sampler(task), self.start(task))
        self.classes(task)
        self.classification(task)
        self.worse_run(task)
        if self.wish is not None:
            task.condition.asked([self.wish], task.data)
        if self.unwanted is not None:
            task.condition.asked([self.unwanted], task.data)
            if self.guidance == 1:
                raise InputError("--negative is what guidance leads away from, and --guidance 1 is none")

    @property
    def unwanted(self) -> str | None:
        """What guidance leads away from; None for the null of the condition."""
        return None

    def classes(self, task: Any) -> list[int]:
        """To which class the classifier leads each sample; none without one."""
        if self.classifier is None:
            if self.wanted is not None:
                raise InputError("--wanted is where --classifier leads to, and none is given")
            return []
        names = real(task.data).class_names
        if self.wanted is not None and self.wanted not in names:
            raise InputError(f"--wanted is one of {', '.join(names)}, not {self.wanted!r}")
        if self.wanted is None and self.wish is not None and task.condition.asked_by == "label":
            return task.condition.asked([self.wish] * self.num, task.data)["label"].tolist()
        return [i % len(names) if self.wanted is None else names.index(self.wanted) for i in range(self.num)]

    def words(self, task: Any) -> list[str]:
        """What each sample is to show."""
        wishes = [words[0] for words in task.condition.wishes(task.data)] if self.wish is None else [self.wish]
        return [wishes[i % len(wishes)] for i in range(self.num)]

    def start(self, task: Any) -> Start | None:
        """Where samples begin, if not at noise. Raises InputError where there is no such picture."""
        if self.image is None:
            return None
        if not isinstance(task.space, Pixels):
            raise InputError(f"--image is a picture, and the space of this run is {type(task.space).__name__}")
        picture = picture_of("--image", self.image, task.data.image_shape[-1])
        kept = None if self.mask is None else kept_of(picture_of("--mask", self.mask, 1))
        return Start(picture[None], self.strength, self.inversion, kept)

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        words, sampler, start = self.words(task), self.sampler(task), self.start(task)
        if self.couples:
            yield self._couples(task, parts, words, sampler)
            return
        began = time.perf_counter()
        classes = self.classes(task)
        states = task.pictures(
            parts,
            words,
            seed=self.seed,
            sampler=sampler,
            negative=self.unwanted,
            start=start,
            guide=self.guide(task, classes),
            worse=self.led(task),
            trajectory=self.trajectory,
        )
        if classes:
            words = [real(task.data).class_names[i] for i in classes]
        taken = sampler if start is None else replace(sampler, steps=start.steps(sampler.steps))
        evaluations = self.evaluations(taken)
        if start is not None and start.inverted:
            evaluations += replace(taken, guidance=1.0).evaluations
        told = f"{sampler.steps} steps, guidance {sampler.guidance:g}, {evaluations} network evaluations each"
        if start is not None:
            told = f"the last {taken.steps} of {told}, from {self.image}"
        said = (
            f"{self.num} samples: {type(sampler.solver).__name__}, {told}, seed {self.seed},"
            f" {time.perf_counter() - began:.1f} s with compilation"
        )
        images = states[-1] if self.trajectory else states
        yield Images(images, words, said=said, arrays={"seed": self.seed})
        if self.trajectory:
            yield Frames(states)

    def _check_couples(self, task: Any) -> None:
        if self.image is not None or self.classifier is not None or self.worse is not None or self.trajectory:
            more = "--image, --classifier, --worse or --trajectory"
            raise InputError(f"--couples are of noise and samples alone: not with {more}")
        if self.solver.stochastic:
            kind = type(self.solver).__name__
            raise InputError(f"--couples are of noise that decides the sample, and {kind} draws more: choose Euler")
        if not task.noises_data:
            raise InputError("--couples are of noise and what the data holds, and this run draws codes of it")
        if task.condition.asked_by == "prompt":
            raise InputError("--couples have labels, and this run is told texts")

    def _couples(self, task: Any, parts: Parts, words: list[str], sampler: Any) -> Output:
        raw = replace(task, space=Latents()) if isinstance(task.space, Pixels) else task  # as they come, not clipped
        images = raw.sample(parts.trained, words, seed=self.seed, sampler=sampler, batch_size=256)
        labels = task.condition.asked(words, task.data).get("label", np.full(len(words), -1))
        # The eps with which x_t at the first time is where the sample began.
        t = jnp.float32(sampler.times(task.process, task.prediction)[0])
        start, x_0 = task.noise(self.seed, len(words), sampler), np.asarray(raw.space.to_x_0(images))
        noise = np.asarray((start - task.process.alpha(t) * x_0) / task.process.sigma(t))
        said = f"{len(words)} couples of noise and samples, in {sampler.evaluations} network evaluations each"
        return Arrays("couples", {"images": images, "noise": noise, "labels": labels}, said=said)


@dataclass(frozen=True, kw_only=True)
class DrawPrompt(DrawImages):
    """Draw samples of a text."""

    prompt: str | None = None
    """Text to draw; the captions of the training data in turn when not given."""
    negative: str | None = None
    """Text that guidance leads away from; the empty one when not given."""

    @property
    def wish(self) -> str | None:
        return self.prompt

    @property
    def unwanted(self) -> str | None:
        return self.negative


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
        yield Images(task.pictures(parts, words, seed=0), words, columns=len(words) // 4)


@dataclass(frozen=True, kw_only=True)
class JudgeImages(Drawing):
    """Measure samples of what the data has, in turn."""

    num: int = 500
    """Number of samples."""
    likelihood: int = 0
    """Also find the bits per dimension of that many held-out images, by the ODE and as a bound; 0 for none."""

    def check(self, task: Any) -> None:
        if self.num < 2:
            raise InputError(f"--num is the number of samples, at least 2 for a covariance, not {self.num}")
        if self.likelihood < 0:
            raise InputError(f"--likelihood is a number of held-out images, at least 0, not {self.likelihood}")
        if self.likelihood and not isinstance(task.space, Pixels):
            raise InputError(f"--likelihood is of pixels, and the space of this run is {type(task.space).__name__}")
        if self.likelihood and levels(real(task.data)) is None:
            raise InputError("--likelihood is of pixels of whole levels, and those of the data are any numbers")
        self.sampler(task)
        self.classification(task)
        self.worse_run(task)

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        words, labels = in_turn(task.condition.wishes(task.data), self.num)
        asked = task.data.class_names and task.condition.asked_by != "nothing"
        if self.classifier is not None:
            labels, asked = np.arange(self.num) % len(task.data.class_names), True
        leads = {"guide": self.guide(task, labels), "worse": self.led(task)}
        samples = task.pictures(parts, words, seed=self.seed, sampler=self.sampler(task), **leads)
        figures = image_figures(real(task.data), samples, labels if asked else None)
        if self.likelihood:
            figures |= likelihood_figures(task, parts.trained, self.likelihood, seed=self.seed)
        yield Numbers(figures | self.told(task))


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
        if self.classifier is not None:
            raise InputError("--classifier leads to classes, and the data of this run has none")
        self.sampler(task)
        self.worse_run(task)

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        sampler, worse = self.sampler(task), self.led(task)

        def draw(prompts: list[str]) -> np.ndarray:
            return task.pictures(parts, prompts, seed=self.seed, sampler=sampler, worse=worse)

        figures = caption_figures(real(task.data), draw, self.num, judge_steps=self.judge_steps, seed=self.seed)
        yield Numbers(figures | self.told(task))


def in_turn(wishes: Sequence[Sequence[str]], number: int) -> tuple[list[str], np.ndarray]:
    """`number` words and the index of the class of each: the classes in turn, and in each round its next words."""
    classes = np.arange(number) % len(wishes)
    rounds = np.arange(number) // len(wishes)
    return [wishes[c][r % len(wishes[c])] for c, r in zip(classes, rounds, strict=True)], classes
