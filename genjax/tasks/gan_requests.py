"""What a GAN can be asked for: samples (truncated, interpolated), and figures of samples, points or pictures.

A mode of a mixture is found when a sample lies within three standard deviations of it; such samples are those of high
quality (Lin et al. 2018, PacGAN, section 4.1).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

from genjax.adversarial.latents import slerp
from genjax.adversarial.transport import assignment, distances
from genjax.data import readable
from genjax.errors import InputError
from genjax.keys import check_seed
from genjax.metrics.classifier import train_classifier
from genjax.runs.outputs import Images, Numbers, Output
from genjax.runs.parts import Parts
from genjax.tasks.image_evaluation import image_figures, labelled_images
from genjax.tasks.plane import scatter

__all__ = ["DrawSamples", "JudgePictures", "JudgePoints", "real_points"]


@dataclass(frozen=True, kw_only=True)
class DrawSamples:
    """Draw samples."""

    num: int = 16
    """Number of samples."""
    truncation: float | None = None
    """Redraw coordinates of z beyond this: fewer kinds of samples, but more typical ones."""
    interpolate: int = 0
    """With pictures: that many steps from each sample to the next along the sphere of latents, a row each."""
    seed: int = 0
    """Seed of the latents; sample i depends on the seed and i alone."""

    def check(self, task: Any) -> None:
        check_seed("--seed", self.seed)
        if self.num < 1:
            raise InputError(f"--num is the number of samples, at least 1, not {self.num}")
        if self.truncation is not None and not self.truncation > 0:
            raise InputError(f"--truncation is a limit for |z|, above 0, not {self.truncation}")
        if self.interpolate < 0:
            raise InputError(f"--interpolate is a number of steps, 0 or more, not {self.interpolate}")
        if self.interpolate and task.draws_points:
            raise InputError("--interpolate leads from picture to picture, and the samples of this run are points")
        if self.interpolate and self.num < 2:
            raise InputError(f"--interpolate leads from picture to picture: --num is at least 2, not {self.num}")

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        params, z = parts.trained["generator"], task.latents(self.seed, self.num, self.truncation)
        said = f"{self.num} samples, seed {self.seed}" + (f", |z| <= {self.truncation:g}" if self.truncation else "")
        if task.draws_points:
            points = task.sample(params, z)
            yield Images(scatter(points, real_points(task, "test"))[None], said=said, arrays={"points": points})
            return
        labels = np.arange(self.num) % task.num_classes if task.num_classes else None
        if self.interpolate:
            steps = np.linspace(0, 1, self.interpolate + 2)
            z = np.concatenate([slerp(np.tile(a, (len(steps), 1)), np.tile(b, (len(steps), 1)), steps)
                                for a, b in zip(z[:-1], z[1:], strict=True)])  # fmt: skip
            labels = None if labels is None else np.repeat(labels[:-1], len(steps))
            said += f", {self.interpolate} steps between each and the next"
        names = [] if labels is None else [task.data.class_names[label] for label in labels]
        columns = self.interpolate + 2 if self.interpolate else None
        yield Images(task.sample(params, z, labels), names, columns=columns, said=said, arrays={"seed": self.seed})


@dataclass(frozen=True, kw_only=True)
class JudgePoints:
    """Measure samples in the plane: distance to the data, modes found."""

    num: int = 2500
    """Number of samples."""
    seed: int = 0
    """Seed of the latents."""

    def check(self, task: Any) -> None:
        check_seed("--seed", self.seed)
        if self.num < 2:
            raise InputError(f"--num is the number of samples, at least 2, not {self.num}")

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        samples = task.sample(parts.trained["generator"], task.latents(self.seed, self.num))
        count = min(self.num, 1000, *(len(real_points(task, split)) for split in ("train", "test")))
        train, test = real_points(task, "train")[:count], real_points(task, "test")[:count]
        figures = {
            "wasserstein_1": assignment(distances(samples[:count], test)).cost,
            "wasserstein_1_train_to_test": assignment(distances(train, test)).cost,
            "points_compared": count,
        }
        if hasattr(task.data, "modes"):
            modes = np.asarray(task.data.modes)
            apart = distances(samples, modes)
            near = apart.min(axis=1) <= 3 * task.data.noise
            found = Counter(apart.argmin(axis=1)[near].tolist())
            figures |= {"modes_found": len(found), "modes": len(modes), "high_quality": float(near.mean())}
        yield Numbers(figures | {"samples": self.num, "seed": self.seed})


@dataclass(frozen=True, kw_only=True)
class JudgePictures:
    """Measure samples of pictures: distance to the data, classes found."""

    num: int = 500
    """Number of samples."""
    seed: int = 0
    """Seed of the latents."""

    def check(self, task: Any) -> None:
        check_seed("--seed", self.seed)
        if self.num < 2:
            raise InputError(f"--num is the number of samples, at least 2 for a covariance, not {self.num}")

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        labels = np.arange(self.num) % task.num_classes if task.num_classes else None
        samples = np.clip(task.sample(parts.trained["generator"], task.latents(self.seed, self.num), labels), -1, 1)
        figures = image_figures(task.data, samples, labels)
        if task.data.class_names:
            shares = np.bincount(train_classifier(*labelled_images(task.data.source("test")))(samples),
                                 minlength=len(task.data.class_names)) / self.num  # fmt: skip
            # A class counts as found where it has a fifth of its even share.
            figures["classes_found"] = int((shares >= 0.2 / len(shares)).sum())
            figures["smallest_class_share"] = float(shares.min())
        yield Numbers(figures | {"seed": self.seed})


def real_points(task: Any, split: str) -> Float[np.ndarray, "N 2"]:
    """The first points of a split, 2,500 at most."""
    source = task.data.source(split)
    return np.stack([example["point"] for example in islice(readable(source), 2500)])
