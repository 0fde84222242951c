"""A classifier of noised images, for guidance: p(y | x_t) at every time of a process.

Training minimises E -log p(y | x_t), x_t = alpha x_0 + sigma eps, over images, times and noise (Dhariwal and Nichol
2021, arXiv:2105.05233, section 4). Its gradient moves the score of any denoiser of the same process (`Guide`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.data import Digits, LabelledImages, stacked
from genjax.diffusion.process import Process, RectifiedFlow, noised
from genjax.diffusion.times import TimeDensity, Uniform
from genjax.errors import InputError
from genjax.keys import check_seed, row_keys
from genjax.models.noisy_classifier import NoisyClassifier
from genjax.parallel.rules import by_rows
from genjax.runs.outputs import Door, Images, Numbers, Output, Request
from genjax.runs.parts import Parts
from genjax.tasks.spaces import Latents, Pixels, Space
from genjax.training.precision import POLICIES, cast
from genjax.training.task import Sums, Task

__all__ = ["Guide", "JudgeClasses", "NoisyClassification", "ShowClasses", "TimedClassifier"]


class TimedClassifier(Protocol):
    """What says the class of a noised image: a Linen module, logits of (x_t, t)."""

    num_classes: int

    def init(self, rngs: Key[Array, ""], x_t: Float[Array, "B H W C"], t: Float[Array, " B"]) -> Any: ...

    def apply(self, variables: Any, x_t: Float[Array, "B H W C"], t: Float[Array, " B"]) -> Float[Array, "B K"]: ...


@dataclass(frozen=True, kw_only=True)
class NoisyClassification(Task):
    """A classifier that trains on noised images."""

    model: TimedClassifier = field(default_factory=NoisyClassifier)
    process: Process = RectifiedFlow()
    times: TimeDensity = Uniform()
    data: LabelledImages = Digits()

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""
        classes = len(self.data.class_names)
        if self.model.num_classes != classes:
            raise InputError(f"model.num_classes is {self.model.num_classes}, and the data has {classes} classes")
        super().check()

    def init(self, key: Key[Array, ""]) -> Parts:
        """Fresh parts; `trained` is {"model": ...}."""
        model = self.model.init(key, jnp.zeros((1, *self.data.image_shape)), jnp.zeros(1))
        return Parts({"model": model["params"]})

    def prepare(self, example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A row of a batch: the image and its class. Raises InputError where its class is not known."""
        if example["label"] < 0:
            raise InputError("an image of the data has no class, and a classifier learns from classes")
        return {"image": example["image"], "label": np.int32(example["label"])}

    def loss(self, parts: Parts, batch: dict[str, Array], keys: Key[Array, " B"], totals: PyTree[Array]) -> Sums:
        """The cross-entropy, at one time and noise per row, and how many classes are right."""
        time_keys, noise_keys = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=2))(keys), 1, 0)
        t = self.times.quantile(jax.vmap(jax.random.uniform)(time_keys), self.process)
        eps = _noise(self, noise_keys)
        loss, right = self._losses(parts.trained, batch, eps, t)
        return Sums({"loss": loss.sum() / totals["rows"]}, {"accuracy": (right.sum(), jnp.float32(len(right)))})

    def _losses(self, trained, rows, eps, t):
        logits = self.logits(trained, noised(self.process, rows["image"], eps, t), t)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, rows["label"])
        return loss, logits.argmax(axis=1) == rows["label"]

    def logits(
        self, trained: PyTree[Array], x_t: Float[Array, "B H W C"], t: Float[Array, " B"]
    ) -> Float[Array, "B K"]:
        """Of each class, in the precision of the policy."""
        policy = POLICIES[self.train.precision]
        weights = {"params": cast(trained["model"], policy.compute)}
        return self.model.apply(weights, x_t.astype(policy.compute), t).astype(policy.accumulate)

    def validate(self, parts: Parts) -> dict[str, float]:
        """Accuracy and loss at eight times on fixed held-out images and noise, and their means."""
        rows = stacked(islice(self.fixed_rows("test"), 256))
        loss, right = by_rows(partial(_at_times, self), parts.trained, rows)
        figures = {f"validation_accuracy/t={t:.4f}": float(share) for t, share in zip(TIMES, right, strict=True)}
        return figures | {"validation_accuracy": float(right.mean()), "validation_loss": float(loss.mean())}

    def check_guidance(self, process: Process, space: Space, data: LabelledImages) -> None:
        """Raise InputError where it knows other noise, images or classes than the run that it is to guide."""
        if space not in (Pixels(), Latents()):
            raise InputError(f"the classifier knows images as the data has them, and the space of this run is {space}")
        if self.process != process:
            raise InputError(f"the classifier knows the noise of {self.process}, and this run has {process}")
        if self.data.image_shape != data.image_shape:
            raise InputError(f"the classifier knows images of {self.data.image_shape}, not of {data.image_shape}")
        if self.data.class_names != data.class_names:
            ours, theirs = (", ".join(names) or "none" for names in (self.data.class_names, data.class_names))
            raise InputError(f"the classifier knows the classes {ours}, and this run has {theirs}")

    def request(self, door: Door) -> Request:
        """Held-out images with what it takes them for, or its accuracy at each time."""
        if door == "evaluate":
            return JudgeClasses()
        return ShowClasses() if door == "sample" else ShowClasses(num=40)


TIMES = (np.arange(8) + 0.5) / 8
"""Times at which it is judged."""


def _noise(task: NoisyClassification, keys: Key[Array, " B"]) -> Float[Array, "B H W C"]:
    """Of unit variance, each row's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, task.data.image_shape))(keys)


@partial(jax.jit, static_argnums=0)
def _at_times(task: NoisyClassification, trained, rows):
    eps = _noise(task, row_keys(0, jnp.arange(len(rows["label"]))))

    def at(t):
        loss, right = task._losses(trained, rows, eps, jnp.full(len(eps), t))
        return loss.mean(), right.mean()

    return jax.lax.map(at, jnp.asarray(TIMES, jnp.float32))


# ---------------------------------------------------------------------------------------------- what can be asked of it


@dataclass(frozen=True, kw_only=True)
class ShowClasses:
    """Show held-out images under noise, each with the class it is taken for."""

    num: int = 16
    """Number of images."""
    t: float = 0.5
    """Time at which they are noised, in [0, 1]: 0 is none, 1 is all."""
    seed: int = 0
    """Seed of the noise."""

    def check(self, task: Any) -> None:
        """Raise InputError for what cannot be shown."""
        check_seed("--seed", self.seed)
        if self.num < 1:
            raise InputError(f"--num is the number of images, at least 1, not {self.num}")
        if not 0 <= self.t <= 1:
            raise InputError(f"--t is a time in [0, 1], not {self.t:g}")

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        rows = stacked(islice(task.fixed_rows("test"), self.num))
        number = len(rows["label"])
        eps = _noise(task, row_keys(self.seed, jnp.arange(number)))
        t = jnp.full(number, self.t)
        x_t = noised(task.process, rows["image"], eps, t)
        taken = np.asarray(by_rows(jax.jit(task.logits), parts.trained, x_t, t).argmax(axis=1))
        right = int((taken == rows["label"]).sum())
        said = f"{number} held-out images at t = {self.t:g}, of which {right} are taken for what they are"
        yield Images(np.asarray(x_t), [task.data.class_names[i] for i in taken], said=said)


@dataclass(frozen=True, kw_only=True)
class JudgeClasses:
    """Measure on held-out images under noise how often the class is right."""

    def check(self, task: Any) -> None:
        """Nothing is asked that could be wrong."""

    def __call__(self, task: Any, parts: Parts) -> Iterator[Output]:
        yield Numbers(task.validate(parts))


# ------------------------------------------------------------------------------------------------------------- guidance


class Guide(NamedTuple):
    """A classifier that leads samples to a class of each."""

    task: NoisyClassification
    trained: PyTree[Array]
    scale: float
    """1 is Bayes' rule for a network that knows no class; larger ones exaggerate the class."""
    labels: Int[np.ndarray, " N"]
    """The class of each sample."""
