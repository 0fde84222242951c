"""Sampling with the nano SD3 network, genjax against torch: 28 Euler steps with classifier-free guidance.

    python benchmarks/sampling.py                   --batch-sizes 16 64 --rounds 10

torch runs the loop of diffusers' SD3 pipeline (FlowMatchEulerDiscreteScheduler, one forward of 2B per step) in
inference mode; genjax does the same with its own guidance and solver in one jitted scan, over the same sigmas. Weights
are equal, and the samples are checked to be equal before any time is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import sd3_networks as sd3
import side_by_side as sbs
import torch
import tyro

from genjax.diffusion.guidance import classifier_free_guidance
from genjax.diffusion.predictions import Velocity
from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.solvers import Euler, integrate


@dataclass(frozen=True)
class Sampling:
    """What is drawn, and how often."""

    batch_sizes: tuple[int, ...] = (16, 64)
    steps: int = 28
    guidance: float = 3.0
    shift: float = 3.0
    rounds: int = 10
    """Turns that each side takes, of 2 samplings each."""


def our_sampler(model, params, batch: dict, times: np.ndarray, guidance: float) -> Callable[[], np.ndarray]:
    @jax.jit
    def sample(params, noise, context, pooled):
        def network(x, t, condition):
            return model.apply({"params": params}, x, t, *condition)

        unconditional, conditional = zip(*(jnp.split(c, 2) for c in (context, pooled)), strict=True)
        guided = classifier_free_guidance(network, unconditional, guidance)

        def denoiser(x, t):
            return Velocity().denoised(RectifiedFlow(), guided(x, t, conditional), x, t)

        return integrate(Euler(), RectifiedFlow(), denoiser, noise, times)

    arguments = jax.device_put((params, batch["x_t"], batch["context"], batch["pooled"]))
    return lambda: np.asarray(sample(*arguments))


def their_sampler(network, batch: dict, config: Sampling) -> Callable[[], np.ndarray]:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=config.shift)
    batch = {name: torch.from_numpy(array) for name, array in batch.items()}
    noise = batch["x_t"].permute(0, 3, 1, 2).contiguous()

    @torch.inference_mode()
    def sample():
        scheduler.set_timesteps(config.steps)
        latents = noise
        for timestep in scheduler.timesteps:
            both = torch.cat([latents, latents])
            velocity = network(
                hidden_states=both,
                timestep=timestep.expand(len(both)),
                encoder_hidden_states=batch["context"],
                pooled_projections=batch["pooled"],
                return_dict=False,
            )[0]
            unconditional, conditional = velocity.chunk(2)
            velocity = unconditional + config.guidance * (conditional - unconditional)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        return latents.permute(0, 2, 3, 1).numpy()

    return sample


def main(config: Sampling) -> None:
    model, params, reference = sd3.networks()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=config.shift)
    scheduler.set_timesteps(config.steps)
    times = scheduler.sigmas.numpy()

    figures, rows = {}, []
    for size in config.batch_sizes:
        batch = sd3.random_batch(2 * size)
        batch["x_t"] = batch["x_t"][:size]
        ours = our_sampler(model, params, batch, times, config.guidance)
        theirs = their_sampler(reference, batch, config)
        np.testing.assert_allclose(ours(), theirs(), rtol=0, atol=1e-3 * np.abs(theirs()).max())
        seconds = sbs.medians(config.rounds, 2, ours=ours, torch=theirs)
        ratio = seconds["torch"] / seconds["ours"]
        rows.append([str(size), 1e3 * seconds["ours"], 1e3 * seconds["torch"], ratio])
        figures[size] = {"ratio": ratio, **{f"{side}_ms": 1e3 * value for side, value in seconds.items()}}
    title = f"{config.steps} Euler steps with guidance, one forward of 2B per step"
    sbs.print_table(title, ["batch", "ours ms", "torch ms", "torch / ours"], rows)
    sbs.print_result(
        benchmark="sampling",
        ratio=min(figure["ratio"] for figure in figures.values()),
        by_batch_size={
            size: {name: round(value, 3) for name, value in figure.items()} for size, figure in figures.items()
        },
        steps=config.steps,
        guidance=config.guidance,
    )


if __name__ == "__main__":
    main(tyro.cli(Sampling))
