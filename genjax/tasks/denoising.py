"""Images by denoising: diffusion and flow models, from DDPM to Stable Diffusion 3, as one composition.

Here the network, the mathematics and the data meet. Training minimises, over images x_0, conditions c, times and noise,

    E w(t) |network(x_t, t, c) - target(x_0, eps, t)|^2,        x_t = alpha(t) x_0 + sigma(t) eps,

with the condition replaced by its null now and then, so that the same network serves classifier-free guidance. Each
part is chosen by itself: what the network is told (`condition`), where it works (`space`), how data turns into noise
(`process`), with which noise each image goes (`coupling`), what is predicted (`prediction`), which times count how much
(`times`, `weighting`), and how samples are drawn (`sampler`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from genjax.data import Images, LabelledImages, readable, stacked
from genjax.diffusion.losses import denoising_loss
from genjax.diffusion.predictions import Inputs, Prediction, Velocity
from genjax.diffusion.process import Process, RectifiedFlow
from genjax.diffusion.times import Draws, Independent, LogitNormal, TimeDensity, shifted
from genjax.diffusion.weightings import Unweighted, Weighting
from genjax.errors import InputError, placed
from genjax.keys import row_keys
from genjax.models.denoising_network import DenoisingNetwork
from genjax.models.mmdit import MMDiT
from genjax.parallel.rules import by_rows, unbox
from genjax.runs.outputs import Door, Request
from genjax.runs.parts import Parts
from genjax.tasks import sampling
from genjax.tasks.conditions import Condition, Text
from genjax.tasks.couplings import Coupling, Drawn
from genjax.tasks.denoising_requests import request
from genjax.tasks.noisy_classification import Guide
from genjax.tasks.sampling import Sampler, Worse
from genjax.tasks.spaces import Pixels, Space
from genjax.tasks.starts import Start
from genjax.training.precision import POLICIES, cast
from genjax.training.task import FREE, Sums, Task

__all__ = ["STRATA", "Denoising", "Sampler"]


@dataclass(frozen=True, kw_only=True)
class Denoising(Task):
    """A system that draws images by denoising."""

    model: DenoisingNetwork = field(default_factory=MMDiT)
    condition: Condition = Text()
    space: Space = Pixels()
    process: Process = RectifiedFlow()
    coupling: Coupling = Drawn()
    prediction: Prediction = Velocity()
    weighting: Weighting = Unweighted()
    times: TimeDensity = LogitNormal()
    draws: Draws = Independent()
    """How the times of a batch are drawn: each by itself, or spread evenly over the rows."""
    time_shift: float = 1.0
    """Shift of the training times towards noise; 1 is none."""
    sampler: Sampler = field(default=Sampler(), metadata=FREE)
    data: LabelledImages = Images()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what is noised."""
        return self.data.image_shape

    noises_data = True
    """Whether what is noised is what the data holds, and not a code of it."""

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""
        if not self.time_shift > 0:
            raise InputError(f"time_shift is positive, not {self.time_shift}")
        channels = self.shape[-1]
        if channels != self.model.channels:
            raise InputError(f"model.channels is {self.model.channels}, and what is noised has {channels}")
        self.condition.check(self.data, self.model)
        if self._seen_nothing().t.ndim > 1 and not getattr(self.model, "intervals", False):
            kinds = type(self.prediction).__name__, type(self.model).__name__
            raise InputError(
                f"{kinds[0]} tells the network where a step ends, and this {kinds[1]} sees one time alone: choose a"
                " network that sees intervals, such as DiT with model.intervals = True"
            )
        coupled = self.coupling.row(next(readable(self.data.source("train"))))
        if "noise" in coupled and coupled["noise"].shape != self.shape:
            raise InputError(
                f"the data's noise is of shape {coupled['noise'].shape}, and what is noised of {self.shape}"
            )
        with placed("sampler", Sampler):
            sampling.check(self, self.sampler)
        try:
            super().check()
        except TypeError as error:
            kinds = type(self.model).__name__, type(self.condition).__name__
            raise InputError(f"{kinds[0]} does not take what a condition of {kinds[1]} gives it: {error}") from None
        shape = jax.eval_shape(self._denoised_nothing, unbox(jax.eval_shape(self.init, jax.random.key(0)))).shape
        if shape[1:] != self.shape:
            kind = type(self.prediction).__name__
            raise InputError(
                f"the network's output is of shape {shape[1:]} where {kind} of {self.shape} has"
                " theirs; a network that learns its variance goes with LearnedVariance"
            )

    def _seen_nothing(self) -> Inputs:
        return self.prediction.inputs(self.process, jnp.zeros((1, *self.shape)), jnp.ones(1))

    def _denoised_nothing(self, parts: Parts) -> Float[Array, "1 H W C"]:
        x, t = jnp.zeros((1, *self.shape)), jnp.ones(1)
        condition = self.encode(parts.trained, self.condition.null(self.data))
        output = self.predict(parts.trained, *self._seen_nothing(), condition)
        return self.prediction.denoised(self.process, output, x, t).x_0

    # ------------------------------------------------------------------ training

    @property
    def couples_rows(self) -> bool:
        """Whether the times of a batch are drawn together."""
        return self.draws.couples_rows

    def init(self, key: Key[Array, ""]) -> Parts:
        """Fresh parts; `trained` is {"model": ...} and what the condition learns."""
        model_key, condition_key = jax.random.split(key)
        learnt = self.condition.init(condition_key, self.data)
        condition = self.condition.encode(unbox(learnt), self.condition.null(self.data), jnp.float32)
        model = self.model.init(model_key, *self._seen_nothing(), *condition)
        return Parts({"model": model["params"]} | learnt)

    def prepare(self, example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A row of a batch: the image, the noise it goes with if it has some, and what it is conditioned on."""
        return {"image": example["image"]} | self.coupling.row(example) | self.condition.row(example, rng, self.data)

    def loss(self, parts: Parts, batch: dict[str, Array], keys: Key[Array, " B"], totals: PyTree[Array]) -> Sums:
        """The denoising loss, at one time and noise per sample."""
        x_0 = self.x_0(parts, batch)
        time_keys, noise_keys, drop_keys = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=3))(keys), 1, 0)
        t = shifted(self.times.quantile(self.draws(time_keys), self.process), self.time_shift)
        eps = self.coupling.eps(noise_keys, batch, x_0.shape[1:])
        dropped = _per_sample(partial(jax.random.bernoulli, p=self.condition.dropout), drop_keys)
        null = self.condition.null(self.data)
        chosen = jax.vmap(jnp.where, in_axes=(0, None, 0))
        rows = {name: chosen(dropped, row[0], batch[name]) for name, row in null.items()}

        dropout_keys = None
        if getattr(self.model, "dropout", 0):
            dropout_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 3)  # 0, 1 and 2 are what split has made
        more_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 4)
        condition = self.encode(parts.trained, rows)
        losses = self.losses(parts.trained, x_0, condition, eps, t, more_keys, dropout_keys=dropout_keys)
        return Sums({"loss": losses.sum() / totals["rows"]})

    def x_0(self, parts: Parts, batch: dict[str, Array]) -> Float[Array, "B H W C"]:
        """What is noised, of rows of a batch."""
        return self.space.to_x_0(batch["image"])

    def losses(
        self,
        trained: PyTree[Array],
        x_0: Float[Array, "B H W C"],
        condition: tuple[Array, ...],
        eps: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        keys: Key[Array, " B"] | None = None,
        *,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, " B"]:
        """The loss of each row at its noise and time; keys for what else its prediction draws in training."""
        return denoising_loss(
            lambda x, t: self.predict(trained, x, t, condition, dropout_keys),
            self.process,
            self.prediction,
            x_0,
            eps,
            t,
            self.weighting,
            keys=keys,
        )

    # ------------------------------------------------------------------ the network, in the precision of the policy

    def encode(self, trained: PyTree[Array], rows: dict[str, Array]) -> tuple[Array, ...]:
        """What the network takes after (x_t, t)."""
        return self.condition.encode(trained, rows, POLICIES[self.train.precision].compute)

    def predict(
        self,
        trained: PyTree[Array],
        x_t: Float[Array, "B H W C"],
        t: Float[Array, "B *times"],
        condition: tuple[Array, ...],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B H W C"] | Float[Array, "B H W 2*C"]:
        """What the network says, float32, of what it sees; a key for each row where activations are to be dropped."""
        policy = POLICIES[self.train.precision]
        weights = {"params": cast(trained["model"], policy.compute)}
        options = {} if dropout_keys is None else {"dropout_keys": dropout_keys}
        return self.model.apply(weights, x_t.astype(policy.compute), t, *condition, **options).astype(policy.accumulate)

    # ------------------------------------------------------------------ sampling

    def sample(
        self,
        trained: PyTree[Array],
        words: Sequence[str],
        *,
        seed: int,
        sampler: Sampler | None = None,
        negative: str | None = None,
        start: Start | None = None,
        guide: Guide | None = None,
        worse: Worse | None = None,
        trajectory: bool = False,
        batch_size: int = 64,
    ) -> Float[np.ndarray, "N H W C"] | Float[np.ndarray, "F N H W C"]:
        """One image or latent for each of the words; with `trajectory`, all states of each, from the first on.

        They begin at noise, or at a `start`; guidance leads away from `negative`, or from the null of the condition, a
        `guide` leads each to a class, and a `worse` system away from its errors. Sample i depends on (seed, i, words i)
        and what leads it alone, not on the batch. Raises InputError for words that stand for nothing, such as a prompt
        that is longer than the text encoder takes, and for a sampler, a start or a system that does not fit.
        """
        return sampling.sample(
            self,
            trained,
            words,
            seed=seed,
            sampler=sampler or self.sampler,
            negative=negative,
            start=start,
            guide=guide,
            worse=worse,
            trajectory=trajectory,
            batch_size=batch_size,
        )

    def pictures(self, parts: Parts, words: Sequence[str], **how: Any) -> Float[np.ndarray, "... N H W C"]:
        """Samples as people see them, and as they are judged; options as those of `sample`."""
        return self.sample(parts.trained, words, **how)

    def noise(self, seed: int, number: int, sampler: Sampler | None = None) -> Float[np.ndarray, "N H W C"]:
        """What the first samples of a seed begin at."""
        return sampling.noise(self, seed, number, sampler or self.sampler)

    # ------------------------------------------------------------------ what people look at

    def request(self, door: Door) -> Request:
        """Samples, their evaluation, or a grid of four rows with a column for each of up to ten wishes."""
        return request(self, door)

    def validate(self, parts: Parts) -> dict[str, float]:
        """Loss on fixed images, conditions and noise at eight equally spaced times, and their mean.

        `validation_loss/t=0.4375` and so on; at the centres of eight strata, of 256 held-out images at most.
        """
        rows = stacked(islice(self.fixed_rows("test"), 256))
        losses = by_rows(partial(_stratum_losses, self), parts, rows)
        names = [f"validation_loss/t={t:.4f}" for t in STRATA]
        return dict(zip(names, map(float, losses), strict=True)) | {"validation_loss": float(losses.mean())}


STRATA = (np.arange(8) + 0.5) / 8
"""Times at which the validation loss is taken."""


def _per_sample(draw, keys, *args):
    return jax.vmap(lambda key: draw(key, *args))(keys)


@partial(jax.jit, static_argnums=0)
def _stratum_losses(task: Denoising, parts, rows):
    """The mean loss at each stratum, with the same noise for the same image in all of them."""
    x_0 = task.x_0(parts, rows)
    condition = task.encode(parts.trained, rows)
    eps = task.coupling.eps(row_keys(0, jnp.arange(len(x_0))), rows, x_0.shape[1:])

    def at(t):
        return task.losses(parts.trained, x_0, condition, eps, jnp.full(len(x_0), t)).mean()

    return jax.lax.map(at, jnp.asarray(STRATA, jnp.float32))
