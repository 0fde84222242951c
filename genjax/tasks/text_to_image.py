"""Text-to-image generation with a flow or diffusion transformer: Stable Diffusion 3 and its kin.

Here the network, the mathematics and the data meet. Training minimises, over images x_0, captions, times and noise,

    E |network(x_t, t, text(caption)) - velocity|^2,        x_t = alpha(t) x_0 + sigma(t) eps,

with the caption replaced by the empty one now and then, so that the same network serves classifier-free guidance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.data import Images, LabelledImages, in_blocks, readable, stacked
from genjax.diffusion.grids import sampling_times
from genjax.diffusion.guidance import classifier_free_guidance
from genjax.diffusion.losses import denoising_loss
from genjax.diffusion.predictions import Prediction, Velocity
from genjax.diffusion.process import Process, RectifiedFlow, prior_std
from genjax.diffusion.solvers import Euler, Solver, check_fit, integrate, padded
from genjax.diffusion.times import LogitNormal, TimeDensity, shifted
from genjax.errors import InputError
from genjax.keys import row_keys
from genjax.models.byte_encoder import ByteEncoder
from genjax.models.mmdit import MMDiT
from genjax.models.text_encoder import TextEncoder
from genjax.parallel.rules import by_rows
from genjax.runs.outputs import Door, Request
from genjax.runs.parts import Parts
from genjax.tasks.text_to_image_requests import DrawImages, DrawPreview, JudgeCaptions, JudgeImages
from genjax.training.precision import POLICIES, cast
from genjax.training.task import FREE, Sums, Task

__all__ = ["STEPS", "STRATA", "Sampler", "TextToImage"]

STEPS = 64
"""One program draws samples in any number of steps up to this one, and another in up to twice as many, and so on."""


@dataclass(frozen=True)
class Sampler:
    """How samples are drawn."""

    solver: Solver = Euler()
    """Solver of the probability-flow ODE, or of the reverse SDE."""
    steps: int = 28
    """Number of its steps."""
    guidance: float = 5.0
    """Scale w of classifier-free guidance, u + w (c - u); 1 is none, and costs half."""
    shift: float = 3.0
    """Shift of the times towards noise, for high resolutions; 1 is none."""
    spacing: Literal["uniform", "sd3"] = "uniform"
    """Grid of times: uniform before the shift, or the table of the released SD3 code."""

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"the number of sampling steps is at least 1, not {self.steps}")
        if not self.shift > 0:
            raise InputError(f"the shift of the sampling times is positive, not {self.shift}")

    @property
    def evaluations(self) -> int:
        """Network evaluations for one sample (NFE), the two of guidance counted."""
        return self.steps * self.solver.evaluations_per_step * (1 if self.guidance == 1 else 2)

    def times(self) -> np.ndarray:
        """The steps + 1 times from noise to data."""
        return sampling_times(self.steps, shift=self.shift, spacing=self.spacing)


@dataclass(frozen=True, kw_only=True)
class TextToImage(Task):
    """A system that turns text into images."""

    model: MMDiT = field(default_factory=MMDiT)
    text: TextEncoder = field(default_factory=ByteEncoder)
    process: Process = RectifiedFlow()
    prediction: Prediction = Velocity()
    times: TimeDensity = LogitNormal()
    time_shift: float = 1.0
    """Shift of the training times towards noise; 1 is none."""
    caption_dropout: float = 0.1
    """Probability of training on the empty caption, which guidance needs."""
    sampler: Sampler = field(default=Sampler(), metadata=FREE)
    data: LabelledImages = Images()

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""
        if not 0 <= self.caption_dropout <= 1:
            raise InputError(f"caption_dropout lies in [0, 1], not at {self.caption_dropout}")
        if not self.time_shift > 0:
            raise InputError(f"time_shift is positive, not {self.time_shift}")
        channels = self.data.image_shape[-1]
        if channels != self.model.channels:
            raise InputError(f"model.channels is {self.model.channels}, and the images of the data have {channels}")
        super().check()
        self.tokenize([caption for captions in self.captions() for caption in captions])

    # ------------------------------------------------------------------ training

    def init(self, key: Key[Array, ""]) -> Parts:
        """Fresh parts; `trained` is {"model": ..., "text": ...}. Raises InputError where the solver is of no use."""
        check_fit(self.sampler.solver, self.process, self.sampler.times())  # not in `check`, which starts no device
        model_key, text_key = jax.random.split(key)
        text, (context, pooled) = _init_with_output(self.text, text_key, self.tokenize([""]))
        image = jnp.zeros((1, *self.data.image_shape))
        model, _ = _init_with_output(self.model, model_key, image, jnp.zeros(1), context, pooled)
        return Parts({"model": model, "text": text})

    def tokenize(self, prompts: Sequence[str]) -> Int[np.ndarray, "B T"]:
        """Token ids of the prompts. Raises InputError for one that is longer than the text encoder takes."""
        return np.stack([self.text.tokenize(prompt) for prompt in prompts])

    def prepare(self, example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A row of a batch: the image and the tokens of one of its captions."""
        captions = example["captions"]
        return {"image": example["image"], "tokens": self.text.tokenize(captions[rng.integers(len(captions))])}

    def loss(self, parts: Parts, batch: dict[str, Array], keys: Key[Array, " B"], totals: PyTree[Array]) -> Sums:
        """The denoising loss, at one time and noise per sample."""
        x_0, tokens = batch["image"], batch["tokens"]
        time_keys, noise_keys, drop_keys = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=3))(keys), 1, 0)
        t = shifted(self.times.quantile(_per_sample(jax.random.uniform, time_keys), self.process), self.time_shift)
        eps = _per_sample(jax.random.normal, noise_keys, x_0.shape[1:])
        dropped = _per_sample(partial(jax.random.bernoulli, p=self.caption_dropout), drop_keys)
        tokens = jnp.where(dropped[:, None], self.tokenize([""]), tokens)

        condition = self.encode(parts.trained, tokens)
        losses = denoising_loss(
            lambda x, t: self.predict(parts.trained, x, t, condition), self.process, self.prediction, x_0, eps, t
        )
        return Sums({"loss": losses.sum() / totals["rows"]})

    # ------------------------------------------------------------------ the network, in the precision of the policy

    def encode(self, params: PyTree[Array], tokens: Int[Array, "B T"]) -> tuple[Array, Array]:
        """Context (B,T,D) and pooled vector (B,P) of the text."""
        return self.text.apply({"params": cast(params["text"], POLICIES[self.train.precision].compute)}, tokens)

    def predict(
        self, params: PyTree[Array], x_t: Float[Array, "B H W C"], t: Float[Array, " B"], condition
    ) -> Float[Array, "B H W C"]:
        """The network's prediction, float32."""
        policy = POLICIES[self.train.precision]
        weights = {"params": cast(params["model"], policy.compute)}
        return self.model.apply(weights, x_t.astype(policy.compute), t, *condition).astype(policy.accumulate)

    # ------------------------------------------------------------------ sampling

    def sample(
        self,
        params: PyTree[Array],
        prompts: Sequence[str],
        *,
        seed: int,
        sampler: Sampler | None = None,
        trajectory: bool = False,
        batch_size: int = 64,
    ) -> Float[np.ndarray, "N H W C"] | Float[np.ndarray, "F N H W C"]:
        """One image or latent per prompt, not clipped; with `trajectory`, all steps + 1 states of each, from noise on.

        Sample i depends on (seed, i, prompt i) alone, not on the batch. Raises InputError for a prompt that is longer
        than the text encoder takes, and for a solver that does not fit the process.
        """
        sampler = sampler or self.sampler
        tokens = self.tokenize(prompts)
        solver, steps, w, guided = sampler.solver, sampler.steps, sampler.guidance, sampler.guidance != 1
        check_fit(solver, self.process, sampler.times())
        times = padded(sampler.times(), -(-steps // STEPS) * STEPS)

        def draw(rows, index):
            drawn = _draw(self, solver, guided, trajectory, params, rows, seed, index, w, times, steps)
            return drawn[: steps + 1] if trajectory else drawn

        index, size = np.arange(len(prompts)), min(batch_size, len(prompts))
        return in_blocks(draw, tokens, index, size=size, axis=1 if trajectory else 0)

    # ------------------------------------------------------------------ what people look at

    def request(self, door: Door) -> Request:
        """Samples of prompts, their evaluation, or a grid of four rows with a column for each of up to ten captions."""
        sampler = self.sampler
        given = {"steps": sampler.steps, "guidance": sampler.guidance, "solver": sampler.solver}
        if door == "evaluate":
            return JudgeImages(**given) if self.data.class_names else JudgeCaptions(**given)
        return DrawImages(**given) if door == "sample" else DrawPreview()

    def validate(self, parts: Parts) -> dict[str, float]:
        """Loss on fixed images, captions and noise at eight equally spaced times, and their mean.

        `validation_loss/t=0.4375` and so on; at the centres of eight strata, of 256 held-out images at most.
        """
        rows = stacked(islice(self.fixed_rows("test"), 256))
        losses = by_rows(partial(_stratum_losses, self), parts.trained, rows["image"], rows["tokens"])
        names = [f"validation_loss/t={t:.4f}" for t in STRATA]
        return dict(zip(names, map(float, losses), strict=True)) | {"validation_loss": float(losses.mean())}

    def captions(self) -> list[tuple[str, ...]]:
        """The captions of each class, in the order of the classes, or of 10 training images where there are none."""
        if not self.data.class_names:
            source = self.data.source("train")
            places = [i * len(source) // 10 for i in range(10)]
            return [next(readable(source, chain(range(i, len(source)), range(i))))["captions"] for i in places]
        source, by_label = self.data.source("test"), {}
        for example in readable(source):
            by_label.setdefault(example["label"], example["captions"])
            if len(by_label) == len(self.data.class_names):
                break
        return [captions for _, captions in sorted(by_label.items())]


STRATA = (np.arange(8) + 0.5) / 8
"""Times at which the validation loss is taken."""


def _init_with_output(module, key, *inputs):
    output, variables = module.init_with_output(key, *inputs)
    return variables["params"], output


def _per_sample(draw, keys, *args):
    return jax.vmap(lambda key: draw(key, *args))(keys)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _draw(task: TextToImage, solver, guided, trajectory, params, tokens, seed, index, guidance, times, steps):
    """A batch of samples; one compilation per solver, bound of the number of steps, and batch size."""
    condition = task.encode(params, tokens)
    denoiser = partial(task.predict, params)
    if guided:
        empty = jnp.broadcast_to(task.tokenize([""]), tokens.shape)
        denoiser = classifier_free_guidance(denoiser, task.encode(params, empty), guidance)

    def denoised(x, t):
        output = denoiser(*task.prediction.inputs(task.process, x, t), condition)
        return task.prediction.denoised(task.process, output, x, t)

    noise = prior_std(task.process) * _per_sample(jax.random.normal, row_keys(seed, index), task.data.image_shape)
    keys = row_keys(jax.random.fold_in(jax.random.key(seed), 1), index)  # of the noise of steps, not of the start
    return integrate(solver, task.process, denoised, noise, times, keys=keys, steps=steps, trajectory=trajectory)


@partial(jax.jit, static_argnums=0)
def _stratum_losses(task: TextToImage, params, images, tokens):
    """The mean loss at each stratum, with the same noise for the same image in all of them."""
    condition = task.encode(params, tokens)
    eps = _per_sample(jax.random.normal, row_keys(0, jnp.arange(len(images))), images.shape[1:])

    def at(t):
        return denoising_loss(
            lambda x, t: task.predict(params, x, t, condition),
            task.process,
            task.prediction,
            images,
            eps,
            jnp.full(len(images), t),
        ).mean()

    return jax.lax.map(at, jnp.asarray(STRATA, jnp.float32))
