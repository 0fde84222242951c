"""Guidance: functions from denoisers to denoisers. A denoiser here is (x_t, t, condition) -> prediction.

With c the conditional, u the unconditional and b the prediction of a worse network, w the scale:

    classifier-free    u + w (c - u), between two times                  Ho and Salimans 2022, arXiv:2207.12598
      rescaled         phi std(c) / std(.) times it, and 1 - phi of it   Lin et al. 2023, arXiv:2305.08891, section 3.4
    classifier         score + w grad log p(y | x_t)                     Dhariwal and Nichol 2021, arXiv:2105.05233
    autoguidance       b + w (c - b)                                     Karras et al. 2024, arXiv:2406.02507
    clipped            x_0 brought into the range of the data            Ho et al. 2020, arXiv:2006.11239, their code
    inpainted          x_0 as it is known, where it is                   Lugmayr et al. 2022, arXiv:2201.09865

A scale of 1 (of a classifier, 0) is no guidance: call the denoiser itself, which costs one pass. Any affine prediction
may be guided by the first and by autoguidance, as their combinations commute with conversion.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from genjax.diffusion.predictions import Denoised
from genjax.diffusion.process import Process, like
from genjax.errors import InputError

__all__ = [
    "ConditionalDenoiser",
    "autoguidance",
    "classifier_free_guidance",
    "classifier_guidance",
    "clipped",
    "inpainted",
]

ConditionalDenoiser = Callable[[Array, Array, PyTree], Array]


def classifier_free_guidance(
    denoiser: ConditionalDenoiser,
    unconditional: PyTree[Array, "C"],
    scale: float | Float[Array, ""] | Float[Array, "B *ones"],
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    guided_channels: int | None = None,
) -> ConditionalDenoiser:
    """u + scale * (c - u) of the conditional and unconditional predictions (Ho and Salimans 2022).

    `scale` is the w of SD3 and diffusers: 1 is no guidance (call `denoiser` itself: it costs half), 0 is
    unconditional; rows may have one each, (B, 1, ...). `unconditional` has the tree and shapes of one batch of
    conditions. Both predictions come from one forward pass of twice the batch.

    interval: (low, high), the times t, as the denoiser is given them, at which it guides; the prediction is the
        conditional one at others (Kynkaanniemi et al. 2024, arXiv:2404.07724). Both passes are made all the same.
    rescale: phi of Lin et al. 2023, from 0 (none) to 1: how far each sample's standard deviation is brought back to
        that of the conditional prediction. A prediction of one value, which has none, is left as it is.
    guided_channels: how many of the last axis are guided, from the first on; the others are the conditional ones. Of a
        network that learns its variance, the half that predicts the mean (as in ADM and DiT); all when not given.

    Raises InputError for an interval or a rescale outside [0, 1], or fewer than one guided channel.
    """
    if interval is not None and not 0 <= interval[0] <= interval[1] <= 1:
        raise InputError(f"the interval of guidance is 0 <= low <= high <= 1, not {interval[0]} to {interval[1]}")
    if not 0 <= rescale <= 1:
        raise InputError(f"the rescale of guidance lies in [0, 1], not at {rescale}")
    if guided_channels is not None and guided_channels < 1:
        raise InputError(f"the number of guided channels is at least 1, not {guided_channels}")

    def guided(x_t: Float[Array, "B *shape"], t: Float[Array, "B *times"], condition: PyTree[Array, "C"]) -> Array:
        both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), condition, unconditional)
        prediction = denoiser(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both)
        whole, free = jnp.split(prediction, 2)
        conditional, free = whole[..., :guided_channels], free[..., :guided_channels]
        moved = free + scale * (conditional - free)
        if rescale:
            std = _std(moved)
            ratio = jnp.where(std > 0, _std(conditional) / jnp.where(std > 0, std, 1), 1)
            moved = moved * (rescale * ratio + 1 - rescale)
        if guided_channels is not None:
            moved = jnp.concatenate([moved, whole[..., guided_channels:]], axis=-1)
        if interval is None:
            return moved
        inside = (t >= interval[0]) & (t <= interval[1])
        return jnp.where(inside.reshape(-1, *[1] * (x_t.ndim - 1)), moved, whole)

    return guided


def _std(x: Array) -> Array:
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def autoguidance(
    denoiser: ConditionalDenoiser, worse: ConditionalDenoiser, scale: float | Float[Array, ""]
) -> ConditionalDenoiser:
    """worse + scale * (denoiser - worse): away from the errors of a smaller or younger network (Karras et al. 2024).

    1 is no guidance, above 1 exaggerates what the better network does better. Predictions may be arrays, or `Denoised`.
    """

    def guided(x_t: Float[Array, "B *shape"], t: Float[Array, "B *times"], condition: PyTree[Array]) -> PyTree[Array]:
        good, bad = denoiser(x_t, t, condition), worse(x_t, t, condition)
        return jax.tree.map(lambda good, bad: bad + scale * (good - bad), good, bad)

    return guided


def classifier_guidance(
    process: Process,
    denoiser: Callable[..., Denoised],
    log_probability: Callable[[Array, Array], Array],
    scale: float | Float[Array, ""] = 1.0,
) -> Callable[..., Denoised]:
    """The denoiser whose score is moved by scale * grad log p(y | x_t) (Dhariwal and Nichol 2021, algorithm 2).

    log_probability: (x_t (B, ...), t (B,)) -> (B,), log p(y | x_t) of what is wanted of each row, which depends on that
        row alone. With the true one and a scale of 1, the result is the denoiser of the data given y.

    eps moves by -sigma scale grad, and x_0 by sigma^2 / alpha scale grad; where alpha is 0 a classifier knows nothing,
    and x_0 stays. Where the denoiser is told the end of a step too, it is so here.
    """

    def guided(x_t: Float[Array, "B *shape"], t: Float[Array, " B"], *end: Float[Array, " B"]) -> Denoised:
        denoised = denoiser(x_t, t, *end)
        gradient = jax.grad(lambda x: log_probability(x, t).sum())(x_t)
        alpha, sigma = process.alpha(like(t, x_t)), process.sigma(like(t, x_t))
        gain = jnp.where(alpha > 0, sigma**2 / jnp.where(alpha > 0, alpha, 1.0), 0.0)
        x_0, eps = denoised.x_0 + scale * gain * gradient, denoised.eps - scale * sigma * gradient
        return denoised._replace(x_0=x_0, eps=eps)

    return guided


def inpainted(
    denoiser: Callable[..., Denoised],
    x_0: Float[Array, "B *shape"],
    eps: Float[Array, "B *shape"],
    kept: Float[Array, "B *ones"],
) -> Callable[..., Denoised]:
    """A denoiser that knows x_0 and the noise in it where `kept` is 1, and elsewhere says what `denoiser` says.

    Samples that begin at `noised(process, x_0, eps, t)` are that of (x_0, eps) at each step, as where a loop writes the
    known part over after each (RePaint, Lugmayr et al. 2022, arXiv:2201.09865, equation 8, with one noise for all
    steps, as diffusers' inpainting of flows has it), by every solver that is exact where x_0 and eps do not change:
    DDIM and DPM-Solver++, and Euler and Heun where alpha and sigma are linear in time.
    """

    def held(x, t, *end):
        found = denoiser(x, t, *end)
        known = {"x_0": x_0, "eps": eps}
        return found._replace(
            **{name: kept * value + (1 - kept) * getattr(found, name) for name, value in known.items()}
        )

    return held


def clipped(process: Process, denoiser: Callable[..., Denoised], size: float) -> Callable[..., Denoised]:
    """The denoiser whose x_0 (B, ...) lies in [-size, size], the range of the data, and whose eps goes with it.

    Where a process leaves next to nothing of the data (alpha is 5e-5 at the end of the cosine table of a thousand
    steps), an x_0 that is read off a prediction of the noise has an error 1 / alpha times as large, and a solver of few
    steps never recovers from the first. What was in range stays as it is; the pair is always one of x_t:
    x_t = alpha x_0 + sigma eps. At sigma = 0, where x_t says nothing of eps, eps stays too.

    Clip what is already guided: clipping first would let guidance lead out of the range again.
    """

    def limited(x_t: Float[Array, "B *shape"], t: Float[Array, " B"], *told: PyTree[Array]) -> Denoised:
        said = denoiser(x_t, t, *told)
        x_0 = jnp.clip(said.x_0, -size, size)
        alpha, sigma = (like(part(t), x_t) for part in (process.alpha, process.sigma))
        moved = (x_0 != said.x_0) & (sigma > 0)
        eps = jnp.where(moved, (x_t - alpha * x_0) / jnp.where(sigma > 0, sigma, 1), said.eps)
        return said._replace(x_0=x_0, eps=eps)

    return limited
