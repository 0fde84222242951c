"""How a denoising system draws samples: one program from noise, or from a picture, to images.

A `Sampler` is what the config and the command line say of it. What leads samples are functions from denoisers to
denoisers, one after the other: classifier-free guidance, a worse network (`Worse`), a classifier (`Guide`).

One compilation serves every seed, every scale, every word, and every number of steps up to a bound; another is made for
each solver, each way of leading, and each size of batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from genjax.data import in_blocks, real
from genjax.diffusion.grids import Grid, ShiftedTimes, grid_times
from genjax.diffusion.guidance import (
    autoguidance,
    classifier_free_guidance,
    classifier_guidance,
    clipped,
    inpainted,
)
from genjax.diffusion.learned_variance import LearnedVariance
from genjax.diffusion.predictions import Denoised, Prediction
from genjax.diffusion.process import Process, noised, prior_std
from genjax.diffusion.solvers import (
    Ancestral,
    Euler,
    Jump,
    Solver,
    check_fit,
    check_jump,
    check_prediction,
    integrate,
    padded,
)
from genjax.errors import InputError
from genjax.keys import row_keys
from genjax.parallel.rules import by_rows
from genjax.tasks.noisy_classification import Guide
from genjax.tasks.starts import Start

__all__ = ["STEPS", "Sampler", "Worse", "check", "check_worse", "noise", "sample", "sample_rows", "times"]

OF_STEPS = 2**31 - 2
"""What the seed is folded with for the noise of steps; rows, which are folded for the noise of the start, are fewer."""

OF_WORSE = "worse."
"""What the names of rows begin with that are for a worse system, which may read words in its own way."""

OF_NULL = "null."
"""What the names of rows begin with that stand in for the null of the condition."""

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
    interval: tuple[float, float] = (0.0, 1.0)
    """Between which times classifier-free guidance acts (Kynkaanniemi et al. 2024); it costs as much at others."""
    rescale: float = 0.0
    """How far guidance is brought back to the deviation it had without, from 0 to 1 (Lin et al. 2023, phi)."""
    clip_denoised: float | None = None
    """Largest size of an estimate of x_0, after all guidance and in inversions too (ADM's code clips before a
    classifier's shift): 1 for pixels of DDPM and ADM; None for any, as of latents and flows."""

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps is the number of sampling steps, at least 1, not {self.steps}")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise InputError(f"interval of guidance is two times, 0 <= low <= high <= 1, not {low:g} and {high:g}")
        if not 0 <= self.rescale <= 1:
            raise InputError(f"rescale of guidance lies in [0, 1], not at {self.rescale:g}")
        if self.clip_denoised is not None and not self.clip_denoised > 0:
            raise InputError(f"clip_denoised is positive, or None for no limit, not {self.clip_denoised:g}")
        if self.clip_denoised is not None and isinstance(self.solver, Jump):
            raise InputError("clip_denoised limits an estimate of the data, and Jump steps along mean velocities: None")

    @property
    def evaluations(self) -> int:
        """Network evaluations for one sample (NFE), the two of guidance counted."""
        return self.steps * self.solver.evaluations_per_step * (1 if self.guidance == 1 else 2)

    def times(self, process: Process, prediction: Prediction) -> Float[np.ndarray, " times"]:
        """The steps + 1 times from noise to data.

        Raises InputError where the solver, the grid or the prediction do not fit the process.
        """
        return times(self.solver, self.grid, self.steps, process, prediction)


def times(
    solver: Solver, grid: Grid, steps: int, process: Process, prediction: Prediction
) -> Float[np.ndarray, " times"]:
    """The steps + 1 times of a grid from noise to data.

    Raises InputError where the solver, the grid or the prediction do not fit the process.
    """
    found = grid_times(grid, process, steps)
    check_fit(solver, process, found)
    check_prediction(prediction, process, found, evaluates_last=solver.evaluates_last)
    check_jump(solver, prediction, found)
    if isinstance(solver, Ancestral) and solver.variance == "learned" and not isinstance(prediction, LearnedVariance):
        kind = type(prediction).__name__
        raise InputError(f"variance of the solver is learned, and {kind} learns none: small or large")
    return found


class Worse(NamedTuple):
    """A smaller or younger system, from whose errors samples are led away (autoguidance, Karras et al. 2024)."""

    task: Any
    """A `Denoising` of the same process, space and condition."""
    trained: PyTree[Array]
    scale: float
    """1 is no guidance; 2 goes as far again."""


def check_worse(task: Any, worse: Any, sampler: Sampler) -> None:
    """Raise InputError where a system `worse` cannot lead the samples of a task away from its errors."""

    def told(system):
        asked_by = system.condition.asked_by
        return asked_by, *([tuple(system.data.class_names)] if asked_by == "label" else [])

    for part, of in (
        ("process", lambda system: system.process),
        ("space", lambda system: system.space),
        ("kind of condition and classes", told),
        ("shape of what is noised", lambda system: system.shape),
        ("first stage", lambda system: getattr(system, "first_stage", None)),
    ):
        if of(task) != of(worse):
            raise InputError(f"a worse run has the {part} of the run, {of(task)}, and this one has {of(worse)}")
    try:
        sampler.times(worse.process, worse.prediction)
    except InputError as error:
        raise InputError(f"the worse run does not fit: {error}") from None


def check(task: Any, sampler: Sampler, start: Start | None = None, rows: int | None = None) -> None:
    """Raise InputError where samples cannot be drawn so; `rows` is the number of samples, where it is known."""
    if sampler.guidance != 1 and not task.condition.dropout:
        kind = type(task.condition).__name__
        raise InputError(
            f"guidance is {sampler.guidance:g}, and a condition of {kind} is never dropped in training here:"
            " only 1 is accepted"
        )
    times = sampler.times(task.process, task.prediction)
    if start is None:
        return
    times = start.times(times)
    shape = start.images.shape[1:]
    if shape != task.shape:
        raise InputError(f"the image to start from is of shape {shape}, and those of the run are of {task.shape}")
    if rows is not None and len(start.images) not in (1, rows):
        raise InputError(f"{rows} samples start from one image, or from one each, not from {len(start.images)}")
    if start.kept is not None:
        _check_kept(start, sampler, rows)
    if start.inverted:
        _check_inversion(task, sampler.solver, times[::-1])


def _check_kept(start: Start, sampler: Sampler, rows: int | None) -> None:
    shape, expected = start.kept.shape, (*start.images.shape[1:3], 1)
    if shape[1:] != expected or shape[0] not in {1, rows or shape[0]}:
        raise InputError(f"what is kept of an image is of shape {shape}, and {expected} of each is accepted")
    if start.inverted:
        raise InputError("an image is kept in part where samples begin at its noise, not where it was inverted")
    if isinstance(sampler.solver, Jump):
        raise InputError("an image is kept in part by estimates of the data, and Jump steps along mean velocities")


def _check_inversion(task: Any, solver: Solver, times: Float[np.ndarray, " T"]) -> None:
    kind = type(solver).__name__
    if solver.stochastic:
        raise InputError(f"{kind} draws noise, and an inversion follows the ODE alone: choose Euler, Heun or DDIM")
    check_fit(solver, task.process, times)
    check_jump(solver, task.prediction, times)
    check_prediction(task.prediction, task.process, times, evaluates_last=solver.evaluates_last)
    tried = integrate(solver, task.process, lambda x, t: Denoised(x / 2, x / 2), jnp.ones((1, 1)), times)
    if not np.isfinite(tried).all():
        raise InputError(f"{kind} cannot step away from data without noise: choose Euler, Heun or DDIM")


def sample(
    task: Any,
    trained: PyTree[Array],
    words: Sequence[str],
    *,
    negative: str | None = None,
    worse: Worse | None = None,
    **how: Any,
) -> Float[np.ndarray, "N H W C"] | Float[np.ndarray, "F N H W C"]:
    """Samples of a `Denoising` task: see there."""
    rows = task.condition.asked(words, task.data)
    null = {} if negative is None else task.condition.asked([negative], task.data)
    rows |= {f"{OF_NULL}{name}": np.repeat(row, len(words), axis=0) for name, row in null.items()}
    if worse is not None:
        own = worse.task.condition.asked(words, worse.task.data)
        rows |= {f"{OF_WORSE}{name}": array for name, array in own.items()}
    return sample_rows(task, trained, rows, len(words), worse=worse, **how)


def sample_rows(
    task: Any,
    trained: PyTree[Array],
    rows: dict[str, np.ndarray],
    number: int,
    *,
    seed: int,
    sampler: Sampler,
    start: Start | None = None,
    guide: Guide | None = None,
    worse: Worse | None = None,
    trajectory: bool = False,
    batch_size: int = 64,
) -> Float[np.ndarray, "N H W C"] | Float[np.ndarray, "F N H W C"]:
    """`number` samples of a `Denoising` task, of rows that its condition reads.

    Rows whose names begin with `null.` are guided away from in place of the condition's null, and those with `worse.`
    are for a worse system. The rest as of `Denoising.sample`.
    """
    check(task, sampler, start, number)
    rows, index = dict(rows), np.arange(number)
    times = sampler.times(task.process, task.prediction)
    bound = -(-sampler.steps // STEPS) * STEPS
    if start is not None:
        times = start.times(times)
        rows["start"] = np.broadcast_to(start.images, (number, *task.shape)).astype(np.float32)
        if start.kept is not None:
            rows["kept"] = np.broadcast_to(start.kept, (number, *task.shape[:2], 1)).astype(np.float32)
    steps = len(times) - 1
    way = _Way(task, sampler.solver, trajectory, clip_denoised=sampler.clip_denoised)
    given = {"seed": seed, "times": padded(times, bound), "steps": steps}
    if start is not None and start.inverted:
        given["rising"] = padded(times[::-1], bound)
    if sampler.guidance != 1:
        way = way._replace(interval=sampler.interval, rescale=sampler.rescale)
        given["guidance"] = sampler.guidance
    if guide is not None:
        guide.task.check_guidance(task.process, task.space, real(task.data))
        way = way._replace(classification=guide.task)
        rows["wanted"] = np.asarray(guide.labels)
        given["classifier"] = guide.trained, guide.scale
    if worse is not None:
        check_worse(task, worse.task, sampler)
        way = way._replace(worse=worse.task)
        given["worse"] = worse.trained, worse.scale
    drawn = partial(_draw, way, **given)

    def draw(index, *arrays):
        images = by_rows(drawn, trained, dict(zip(rows, arrays, strict=True)), index)
        return images[: steps + 1] if trajectory else images

    size = min(batch_size, number)
    return in_blocks(draw, index, *rows.values(), size=size, axis=1 if trajectory else 0)


def noise(task: Any, seed: int, number: int, sampler: Sampler) -> Float[np.ndarray, "N H W C"]:
    """What the first samples of a seed begin at."""
    times = sampler.times(task.process, task.prediction)
    return np.asarray(_noise(task, row_keys(seed, jnp.arange(number)), times[0]))


def _normal(keys: Key[Array, " B"], shape: tuple[int, ...]) -> Float[Array, "B *shape"]:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _noise(task: Any, keys: Key[Array, " B"], t: Float[Array, ""]) -> Float[Array, "B H W C"]:
    """Where samples begin at time t."""
    return prior_std(task.process, t) * _normal(keys, task.shape)


class _Way(NamedTuple):
    """What a program is compiled for."""

    task: Any
    solver: Solver
    trajectory: bool
    interval: tuple[float, float] | None = None
    """Of classifier-free guidance; None without it."""
    rescale: float = 0.0
    clip_denoised: float | None = None
    classification: Any = None
    worse: Any = None


@partial(jax.jit, static_argnums=0)
def _draw(way: _Way, trained, rows, index, *, seed, times, steps, rising=None, guidance=1, classifier=None, worse=None):
    """A batch of samples. `classifier` and `worse` are pairs of weights and a scale."""
    task = way.task
    images, kept, wanted = (rows.pop(name, None) for name in ("start", "kept", "wanted"))
    words_of_worse, null = (
        {name.removeprefix(start): rows.pop(name) for name in list(rows) if name.startswith(start)}
        for start in (OF_WORSE, OF_NULL)
    )

    def unconditional():
        """What the network takes where the condition is its null."""
        own = task.condition.null(task.data)
        return task.encode(trained, {name: jnp.broadcast_to(row, rows[name].shape) for name, row in own.items()})

    predict = partial(task.predict, trained)
    condition = task.encode(trained, rows)
    denoised = plain = _denoiser(task, lambda t: predict, condition)
    if way.interval is not None:
        away = task.encode(trained, null) if null else unconditional()
        low, high = way.interval

        def guided(t):
            scale = jnp.where((t >= low) & (t <= high), guidance, 1.0)
            channels = task.shape[-1]  # of a network that learns its variance, the first half
            options = {"rescale": way.rescale, "guided_channels": channels}
            return classifier_free_guidance(predict, away, scale[:, None, None, None], **options)

        denoised = _denoiser(task, guided, condition)
    if way.worse is not None:
        told = way.worse.encode(worse[0], words_of_worse)
        bad = _denoiser(way.worse, lambda t: partial(way.worse.predict, worse[0]), told)
        denoised = _led_away(denoised, bad, worse[1])
    if way.classification is not None:

        def log_probability(x, t):
            every = jax.nn.log_softmax(way.classification.logits(classifier[0], x, t))
            return jnp.take_along_axis(every, wanted[:, None], axis=1)[:, 0]

        denoised = classifier_guidance(task.process, denoised, log_probability, classifier[1])
    if way.clip_denoised is not None:
        denoised = clipped(task.process, denoised, way.clip_denoised)

    row = row_keys(seed, index)
    if images is None:
        x = _noise(task, row, times[0])
    elif rising is None:
        x_0, eps = task.space.to_x_0(images), _normal(row, images.shape[1:])
        x = noised(task.process, x_0, eps, times[0])
        if kept is not None:
            denoised = inpainted(denoised, x_0, eps, kept)
    else:
        if task.condition.dropout:
            plain = _denoiser(task, lambda t: predict, unconditional())
        if way.clip_denoised is not None:
            plain = clipped(task.process, plain, way.clip_denoised)
        x = integrate(way.solver, task.process, plain, task.space.to_x_0(images), rising, steps=steps)
    keys = row_keys(jax.random.fold_in(jax.random.key(seed), OF_STEPS), index)
    x = integrate(way.solver, task.process, denoised, x, times, keys=keys, steps=steps, trajectory=way.trajectory)
    if kept is not None and not way.trajectory:
        x = kept * x_0 + (1 - kept) * x  # solvers that are not exact where nothing changes have drifted
    return task.space.to_image(x)


def _denoiser(task: Any, network_at, condition):
    """The pair that the network of a time stands for; told where a step ends too, of mean velocities.

    The time is that of the process, which is not always what the network sees of it.
    """

    def denoised(x, t, *end):
        output = network_at(t)(*task.prediction.inputs(task.process, x, t, *end), condition)
        return task.prediction.denoised(task.process, output, x, t)

    return denoised


def _led_away(denoised, worse, scale):
    """By autoguidance; what the better one says of a variance stays."""

    def led(x, t, *end):
        good, bad = denoised(x, t, *end), worse(x, t, *end)
        x_0, eps = autoguidance(lambda *_: good[:2], lambda *_: bad[:2], scale)(x, t, None)
        return good._replace(x_0=x_0, eps=eps)

    return led
