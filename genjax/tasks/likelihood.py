"""How likely held-out images are under a denoising system, in bits per dimension: two figures of one network.

    bits_per_dim_ode     of its probability-flow ODE, images dequantised, the divergence by Hutchinson's estimate
    bits_per_dim_bound   the variational bound of its chain in 250 steps

Of a system with a condition they are those of an image given what it shows. Both are of images whose pixels take
`levels` values from -1 to 1: 256 unless the data says otherwise.
"""

from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from genjax.data import in_blocks, readable, real, stacked
from genjax.diffusion.likelihood import Hutchinson, bits_per_dim, chain_bound, dequantised, log_density
from genjax.diffusion.process import Process, log_snr, time_of_log_snr
from genjax.keys import row_keys

__all__ = ["likelihood_figures", "noise_levels"]

ODE_STEPS, CHAIN_STEPS = 60, 250


def likelihood_figures(task: Any, trained: PyTree[Array], number: int, *, seed: int) -> dict[str, float | int]:
    """The figures of the first `number` held-out images, with the noise of a seed; a `Denoising` task in pixels."""
    rng, data = np.random.default_rng(0), real(task.data)
    source = data.source("test")
    examples = islice(readable(source), number)
    rows = stacked({"image": each["image"]} | task.condition.row(each, rng, data) for each in examples)
    levels = getattr(data, "levels", 256)
    last = float(task.sampler.times(task.process, task.prediction)[0])
    times = {
        "ode": noise_levels(task.process, 0.1 * 2 / levels, last, ODE_STEPS),
        # A chain that went below the distance of two levels would pay for digits that no level has.
        "chain": np.append(0.0, noise_levels(task.process, 2 / (levels - 1), last, CHAIN_STEPS - 1)),
    }
    bits = partial(_bits, task, levels, trained, times, seed)

    def block(index, *arrays):
        return np.stack(bits(dict(zip(rows, arrays, strict=True)), index), axis=1)

    ode, bound = np.mean(in_blocks(block, np.arange(len(rows["image"])), *rows.values(), size=64), axis=0)
    return {
        "bits_per_dim_ode": float(ode),
        "bits_per_dim_bound": float(bound),
        "likelihood_images": len(rows["image"]),
    }


def noise_levels(process: Process, first: float, last: float, steps: int) -> Float[np.ndarray, " T"]:
    """steps + 1 times, even in log-SNR, from where sigma / alpha is `first` (or at its smallest) to time `last`.

    Where data is gone at `last`, log-SNR is even down to -7, and `last` is the end of the last step.
    """
    with jax.enable_x64(True):
        end = np.maximum(log_snr(process, jnp.asarray(last)), -7.0)
        begin = np.minimum(log_snr(process, jnp.asarray(1e-12)), -np.log(first))
        times = np.array(time_of_log_snr(process, jnp.linspace(begin, end, steps + 1)))
    times[-1] = last
    return times


@partial(jax.jit, static_argnums=(0, 1))
def _bits(task, levels, trained, times, seed, rows, index):
    keys, image = row_keys(seed, index), rows["image"]
    condition = task.encode(trained, {name: row for name, row in rows.items() if name != "image"})

    def denoiser(x, t):
        output = task.predict(trained, *task.prediction.inputs(task.process, x, t), condition)
        return task.prediction.denoised(task.process, output, x, t)

    spread, probe = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=2))(keys), 1, 0)
    x_0 = dequantised(image, spread, levels)
    solved = log_density(task.process, denoiser, x_0, times["ode"], divergence=Hutchinson(), keys=probe)
    bound = chain_bound(task.process, denoiser, image, keys, times["chain"], levels=levels)
    return bits_per_dim(solved.log_density, image[0].size, levels), bound.total
