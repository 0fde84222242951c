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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from genjax.data import Images, LabelledImages, in_blocks, readable, real, stacked
from genjax.diffusion.grids import Grid, ShiftedTimes, grid_times
from genjax.diffusion.guidance import classifier_free_guidance, classifier_guidance
from genjax.diffusion.losses import denoising_loss
from genjax.diffusion.predictions import Denoised, Inputs, Prediction, Velocity
from genjax.diffusion.process import Process, RectifiedFlow, noised, prior_std
from genjax.diffusion.solvers import Euler, Solver, check_fit, check_jump, check_prediction, integrate, padded
from genjax.diffusion.times import Draws, Independent, LogitNormal, TimeDensity, shifted
from genjax.diffusion.weightings import Unweighted, Weighting
from genjax.errors import InputError, placed
from genjax.keys import row_keys
from genjax.models.denoising_network import DenoisingNetwork
from genjax.models.mmdit import MMDiT
from genjax.parallel.rules import by_rows, unbox
from genjax.runs.outputs import Door, Request
from genjax.runs.parts import Parts
from genjax.tasks.conditions import Condition, Text
from genjax.tasks.couplings import Coupling, Drawn
from genjax.tasks.denoising_requests import request
from genjax.tasks.noisy_classification import Guide
from genjax.tasks.spaces import Pixels, Space
from genjax.tasks.starts import Start
from genjax.training.precision import POLICIES, cast
from genjax.training.task import FREE, Sums, Task

__all__ = ["STEPS", "STRATA", "Denoising", "Sampler"]

OF_STEPS = 2**31 - 2
"""What the seed is folded with for the noise of steps; rows, which are folded for the noise of the start, are fewer."""

STEPS = 64
"""One program draws samples in any number of steps up to this one, another in up to twice as many, and so on."""


@dataclass(frozen=True)
class Sampler:
    """How samples are drawn."""

    solver: Solver = Euler()
    """Solver of the probability-flow ODE, or of the reverse SDE."""
    steps: int = 28
    """Number of its steps."""
    guidance: float = 5.0
    """Scale w of classifier-free guidance, u + w (c - u); 1 is none, and costs half."""
    grid: Grid = ShiftedTimes(3.0)
    """At which times it stops on the way from noise to data."""

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps is the number of sampling steps, at least 1, not {self.steps}")

    @property
    def evaluations(self) -> int:
        """Network evaluations for one sample (NFE), the two of guidance counted."""
        return self.steps * self.solver.evaluations_per_step * (1 if self.guidance == 1 else 2)

    def times(self, process: Process, prediction: Prediction) -> Float[np.ndarray, " times"]:
        """The steps + 1 times from noise to data.

        Raises InputError where the solver, the grid or the prediction do not fit the process.
        """
        times = grid_times(self.grid, process, self.steps)
        check_fit(self.solver, process, times)
        check_prediction(prediction, process, times, evaluates_last=self.solver.evaluates_last)
        check_jump(self.solver, prediction, times)
        return times


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

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""
        if not self.time_shift > 0:
            raise InputError(f"time_shift is positive, not {self.time_shift}")
        channels = self.data.image_shape[-1]
        if channels != self.model.channels:
            raise InputError(f"model.channels is {self.model.channels}, and the images of the data have {channels}")
        self.condition.check(self.data, self.model)
        if self._seen_nothing().t.ndim > 1 and not getattr(self.model, "intervals", False):
            kinds = type(self.prediction).__name__, type(self.model).__name__
            raise InputError(
                f"{kinds[0]} tells the network where a step ends, and this {kinds[1]} sees one time alone: choose a"
                " network that sees intervals, such as DiT with model.intervals = True"
            )
        self.coupling.row(next(readable(self.data.source("train"))))
        with placed("sampler", Sampler):
            self.check_sampler(self.sampler)
        try:
            super().check()
        except TypeError as error:
            kinds = type(self.model).__name__, type(self.condition).__name__
            raise InputError(f"{kinds[0]} does not take what a condition of {kinds[1]} gives it: {error}") from None
        shape = jax.eval_shape(self._denoised_nothing, unbox(jax.eval_shape(self.init, jax.random.key(0)))).shape
        if shape[1:] != self.data.image_shape:
            kind = type(self.prediction).__name__
            raise InputError(
                f"the network's output is of shape {shape[1:]} where {kind} of images of {self.data.image_shape} has"
                " theirs; a network that learns its variance goes with LearnedVariance"
            )

    def check_sampler(self, sampler: Sampler, start: Start | None = None, rows: int | None = None) -> None:
        """Raise InputError where samples cannot be drawn so; `rows` is the number of samples, where it is known."""
        if sampler.guidance != 1 and not self.condition.dropout:
            kind = type(self.condition).__name__
            raise InputError(
                f"guidance is {sampler.guidance:g}, and a condition of {kind} is never dropped in training here:"
                " only 1 is accepted"
            )
        times = sampler.times(self.process, self.prediction)
        if start is not None:
            times = start.times(times)
            shape = start.images.shape[1:]
            if shape != self.data.image_shape:
                raise InputError(
                    f"the image to start from is of shape {shape}, and those of the run are of {self.data.image_shape}"
                )
            if rows is not None and len(start.images) not in (1, rows):
                raise InputError(f"{rows} samples start from one image, or from one each, not from {len(start.images)}")
            if start.inverted:
                self._check_inversion(sampler.solver, times[::-1])

    def _check_inversion(self, solver: Solver, times: Float[np.ndarray, " T"]) -> None:
        kind = type(solver).__name__
        if solver.stochastic:
            raise InputError(f"{kind} draws noise, and an inversion follows the ODE alone: choose Euler, Heun or DDIM")
        check_fit(solver, self.process, times)
        check_jump(solver, self.prediction, times)
        check_prediction(self.prediction, self.process, times, evaluates_last=solver.evaluates_last)
        tried = integrate(solver, self.process, lambda x, t: Denoised(x / 2, x / 2), jnp.ones((1, 1)), times)
        if not np.isfinite(tried).all():
            raise InputError(f"{kind} cannot step away from data without noise: choose Euler, Heun or DDIM")

    def _seen_nothing(self) -> Inputs:
        return self.prediction.inputs(self.process, jnp.zeros((1, *self.data.image_shape)), jnp.ones(1))

    def _denoised_nothing(self, parts: Parts) -> Float[Array, "1 H W C"]:
        x, t = jnp.zeros((1, *self.data.image_shape)), jnp.ones(1)
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
        x_0 = self.space.to_x_0(batch["image"])
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

    def losses(
        self,
        trained: PyTree[Array],
        x_0: Float[Array, "B H W C"],
        condition: tuple[Array, ...],
        eps: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        keys: Key[Array, " B"],
        *,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, " B"]:
        """The loss of each row at its noise and time; keys for what else its prediction draws."""
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
        start: Start | None = None,
        guide: Guide | None = None,
        trajectory: bool = False,
        batch_size: int = 64,
    ) -> Float[np.ndarray, "N H W C"] | Float[np.ndarray, "F N H W C"]:
        """One image or latent for each of the words; with `trajectory`, all states of each, from the first on.

        They begin at noise, or at a `start`; a `guide` leads each to a class. Sample i depends on (seed, i, words i)
        alone, not on the batch. Raises InputError for words that stand for nothing, such as a prompt that is longer
        than the text encoder takes, and for a sampler, a start or a guide that does not fit.
        """
        sampler = sampler or self.sampler
        self.check_sampler(sampler, start, len(words))
        if guide is not None:
            guide.task.check_guidance(self.process, self.space, real(self.data))
        rows, index = self.condition.asked(words, self.data), np.arange(len(words))
        times = sampler.times(self.process, self.prediction)
        bound = -(-sampler.steps // STEPS) * STEPS
        if start is not None:
            times = start.times(times)
            rows["start"] = np.broadcast_to(start.images, (len(words), *self.data.image_shape)).astype(np.float32)
        steps, guided = len(times) - 1, sampler.guidance != 1
        given = {"seed": seed, "guidance": sampler.guidance, "times": padded(times, bound), "steps": steps}
        if guide is not None:
            rows["wanted"] = np.asarray(guide.labels)
            given |= {"classifier": guide.trained, "classifier_scale": guide.scale}
        inverted = start is not None and start.inverted
        if inverted:
            given["rising"] = padded(times[::-1], bound)
        drawn = partial(_draw, self, sampler.solver, guided, trajectory, guide and guide.task, **given)

        def draw(index, *arrays):
            images = by_rows(drawn, trained, dict(zip(rows, arrays, strict=True)), index)
            return images[: steps + 1] if trajectory else images

        size = min(batch_size, len(words))
        return in_blocks(draw, index, *rows.values(), size=size, axis=1 if trajectory else 0)

    def noise(self, seed: int, number: int, sampler: Sampler | None = None) -> Float[np.ndarray, "N H W C"]:
        """What the first samples of a seed begin at."""
        times = (sampler or self.sampler).times(self.process, self.prediction)
        return np.asarray(_noise(self, row_keys(seed, jnp.arange(number)), times[0]))

    # ------------------------------------------------------------------ what people look at

    def request(self, door: Door) -> Request:
        """Samples, their evaluation, or a grid of four rows with a column for each of up to ten wishes."""
        return request(self, door)

    def validate(self, parts: Parts) -> dict[str, float]:
        """Loss on fixed images, conditions and noise at eight equally spaced times, and their mean.

        `validation_loss/t=0.4375` and so on; at the centres of eight strata, of 256 held-out images at most.
        """
        rows = stacked(islice(self.fixed_rows("test"), 256))
        losses = by_rows(partial(_stratum_losses, self), parts.trained, rows)
        names = [f"validation_loss/t={t:.4f}" for t in STRATA]
        return dict(zip(names, map(float, losses), strict=True)) | {"validation_loss": float(losses.mean())}


STRATA = (np.arange(8) + 0.5) / 8
"""Times at which the validation loss is taken."""


def _per_sample(draw, keys, *args):
    return jax.vmap(lambda key: draw(key, *args))(keys)


def _noise(task: Denoising, keys: Key[Array, " B"], t: Float[Array, ""]) -> Float[Array, "B H W C"]:
    """Where samples begin at time t."""
    return prior_std(task.process, t) * _per_sample(jax.random.normal, keys, task.data.image_shape)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _draw(
    task: Denoising,
    solver,
    guided,
    trajectory,
    classification,
    trained,
    rows,
    index,
    *,
    seed,
    guidance,
    times,
    steps,
    rising=None,
    classifier=None,
    classifier_scale=None,
):
    """A batch of samples; one compilation per solver, bound of the number of steps, and batch size."""
    images, wanted = rows.pop("start", None), rows.pop("wanted", None)
    condition = task.encode(trained, rows)
    null = {name: jnp.broadcast_to(row, rows[name].shape) for name, row in task.condition.null(task.data).items()}
    network = partial(task.predict, trained)
    denoiser = network
    if guided:
        channels = task.data.image_shape[-1]  # of a network that learns its variance, the first half
        denoiser = classifier_free_guidance(denoiser, task.encode(trained, null), guidance, guided_channels=channels)

    def denoised(x, t, *end, denoiser=denoiser, condition=condition):
        output = denoiser(*task.prediction.inputs(task.process, x, t, *end), condition)
        return task.prediction.denoised(task.process, output, x, t)

    led = denoised
    if classification is not None:

        def log_probability(x, t):
            every = jax.nn.log_softmax(classification.logits(classifier, x, t))
            return jnp.take_along_axis(every, wanted[:, None], axis=1)[:, 0]

        led = classifier_guidance(task.process, denoised, log_probability, classifier_scale)

    row = row_keys(seed, index)
    if images is None:
        x = _noise(task, row, times[0])
    elif rising is None:
        x = noised(
            task.process, task.space.to_x_0(images), _per_sample(jax.random.normal, row, images.shape[1:]), times[0]
        )
    else:
        told = task.encode(trained, null) if task.condition.dropout else condition
        untold = partial(denoised, denoiser=network, condition=told)
        x = integrate(solver, task.process, untold, task.space.to_x_0(images), rising, steps=steps)
    keys = row_keys(jax.random.fold_in(jax.random.key(seed), OF_STEPS), index)
    x = integrate(solver, task.process, led, x, times, keys=keys, steps=steps, trajectory=trajectory)
    return task.space.to_image(x)


@partial(jax.jit, static_argnums=0)
def _stratum_losses(task: Denoising, trained, rows):
    """The mean loss at each stratum, with the same noise for the same image in all of them."""
    x_0 = task.space.to_x_0(rows["image"])
    condition = task.encode(trained, rows)
    eps = task.coupling.eps(row_keys(0, jnp.arange(len(x_0))), rows, x_0.shape[1:])

    keys = row_keys(1, jnp.arange(len(x_0)))

    def at(t):
        return task.losses(trained, x_0, condition, eps, jnp.full(len(x_0), t), keys).mean()

    return jax.lax.map(at, jnp.asarray(STRATA, jnp.float32))
