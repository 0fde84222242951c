"""How likely held-out images are under a denoising system, in bits per dimension: two bounds of one network.

    bits_per_dim_ode     by its probability-flow ODE from a small noise on (Zheng et al. 2023, arXiv:2305.03935)
    bits_per_dim_bound   the variational bound of its chain of 250 steps (Ho et al. 2020, arXiv:2006.11239)

With q(x_t | x) the noise of a first time t, at which the distance of two levels is three deviations,

    -log P(x) <= E_q -log p_t(x_t) - log P(x | x_t) + log q(x_t | x),

where p_t is the density of the ODE and P(x | x_t) that of the level that x_t lies next to. The network is asked about
noised images alone, as in training; nearer to the data it errs, and further away levels are not told apart (a flow of
digits, on held-out images: 1.95, 1.90 and 1.92 bits at four, three and two deviations). Of a system with a condition
they are those of an image given what it shows, without guidance. Both are of images whose pixels take `levels` values
from -1 to 1: 256 unless the data says otherwise.
"""

from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from genjax.data import LabelledImages, in_blocks, readable, real, stacked
from genjax.diffusion.likelihood import Hutchinson, chain_bound, discretised_log_density, log_density
from genjax.diffusion.process import Process, log_snr, noised, time_of_log_snr
from genjax.keys import row_keys

__all__ = ["levels", "likelihood_figures", "noise_levels"]

ODE_STEPS, CHAIN_STEPS = 60, 250


def levels(data: LabelledImages) -> int | None:
    """How many values a pixel of the data takes, evenly from -1 to 1; None where they are any numbers."""
    return getattr(data, "levels", 256)


def likelihood_figures(task: Any, trained: PyTree[Array], number: int, *, seed: int) -> dict[str, float | int]:
    """The figures of the first `number` held-out images, with the noise of a seed; a `Denoising` task in pixels."""
    rng, data = np.random.default_rng(0), real(task.data)
    examples = islice(readable(data.source("test")), number)
    rows = stacked({"image": each["image"]} | task.condition.row(each, rng, data) for each in examples)
    last = float(task.sampler.times(task.process, task.prediction)[0])
    distance = 2 / (levels(data) - 1)
    times = {
        "ode": noise_levels(task.process, distance / 3, last, ODE_STEPS),
        # A chain that went below the distance of two levels would pay for digits that no level has.
        "chain": np.append(0.0, noise_levels(task.process, distance, last, CHAIN_STEPS - 1)),
    }
    bits = partial(_bits, task, levels(data), trained, times, seed)

    def block(index, *arrays):
        return np.stack(bits(dict(zip(rows, arrays, strict=True)), index), axis=1)

    ode, bound = np.mean(in_blocks(block, np.arange(len(rows["image"])), *rows.values(), size=64), axis=0)
    return {
        "bits_per_dim_ode": float(ode),
        "bits_per_dim_bound": float(bound),
        "likelihood_images": len(rows["image"]),
    }


def noise_levels(process: Process, first: float, last: float, steps: int) -> Float[np.ndarray, " T"]:
    """steps + 1 times, even in log-SNR, from where sigma / alpha is `first` to time `last`.

    They begin later where noise is larger at every time, and end earlier, at a log-SNR of -7, where it falls below that
    before `last`: what is left of data of unit variance there is a millionth of the prior's.
    """
    with jax.enable_x64(True):
        end = np.maximum(log_snr(process, jnp.asarray(last)), -7.0)
        begin = np.minimum(log_snr(process, jnp.asarray(1e-6)), -np.log(first))
        return np.array(time_of_log_snr(process, jnp.linspace(begin, end, steps + 1)))


@partial(jax.jit, static_argnums=(0, 1))
def _bits(task, levels, trained, times, seed, rows, index):
    keys, image = row_keys(seed, index), rows["image"]
    condition = task.encode(trained, {name: row for name, row in rows.items() if name != "image"})

    def denoiser(x, t):
        output = task.predict(trained, *task.prediction.inputs(task.process, x, t), condition)
        return task.prediction.denoised(task.process, output, x, t)

    noise_keys, probe = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=2))(keys), 1, 0)
    eps = jax.vmap(lambda key: jax.random.normal(key, image.shape[1:]))(noise_keys)
    t = jnp.float32(times["ode"][0])
    alpha, sigma = task.process.alpha(t), task.process.sigma(t)
    x_t = noised(task.process, image, eps, t)
    solved = log_density(task.process, denoiser, x_t, times["ode"], divergence=Hutchinson(), keys=probe)
    read = discretised_log_density(image, x_t / alpha, jnp.log(sigma / alpha), levels)
    of_noise = jax.scipy.stats.norm.logpdf(eps) - jnp.log(sigma)
    nats = -solved.log_density - (read - of_noise).sum(axis=(1, 2, 3))
    bound = chain_bound(task.process, denoiser, image, keys, times["chain"], levels=levels)
    return nats / (image[0].size * np.log(2)), bound.total
