"""Sampling with the same network, genjax in one jitted scan against the loop of a pipeline of diffusers in torch.

    python benchmarks/sampling.py                   --batch-sizes 16 64 --rounds 10 --cases unet dit sd3

    unet    the U-Net of configs/ddpm.py: DDIM in 50 steps, DPM-Solver++ 2M in 20
    dit     the DiT of configs/dit.py, its variance learned, with classifier-free guidance: the same
    sd3     the MM-DiT of configs/sd3.py with guidance: Euler in 28 steps, on the shifted grid

torch runs what DDIMPipeline, DiTPipeline and the SD3 pipeline do, in inference mode, with the schedulers of diffusers.
Weights are equal, and the samples are checked to be equal before any time is taken. A ratio of 2 is what we want of the
first two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import sd3_networks as sd3
import side_by_side as sbs
import torch
import tyro
from flax.core import meta

from genjax import config
from genjax.diffusion.guidance import classifier_free_guidance
from genjax.diffusion.learned_variance import LearnedVariance
from genjax.diffusion.predictions import Eps, Prediction, Velocity
from genjax.diffusion.process import Process, RectifiedFlow
from genjax.diffusion.processes import DDPM
from genjax.diffusion.solvers import DDIM, DPMpp2M, Euler, Solver, integrate
from genjax.interop import dit, unet
from genjax.parallel.host_memory import keep_freed_memory

CONFIGS = Path(__file__).parents[1] / "configs"
WANTED = 2.0
"""The least ratio of the networks of images; the SD3 loop is compared with no aim."""
CHAIN = dict(beta_schedule="linear", timestep_spacing="trailing")


@dataclass(frozen=True)
class Sampling:
    """What is drawn, and how often."""

    cases: tuple[Literal["unet", "dit", "sd3"], ...] = ("unet", "dit", "sd3")
    batch_sizes: tuple[int, ...] = (16, 64)
    guidance: float = 3.0
    """Scale of dit and sd3."""
    shift: float = 3.0
    """Of the grid of sd3."""
    rounds: int = 10
    """Turns that each side takes, of 2 samplings each."""


class Case(NamedTuple):
    """One way of drawing samples, on both sides."""

    title: str
    wanted: float | None
    of_size: Callable[[int], tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]]
    """(ours, theirs), samplers of so many images (B,H,W,C)."""


class Ours(NamedTuple):
    """The mathematics of a sampler of ours."""

    process: Process
    prediction: Prediction
    solver: Solver
    times: np.ndarray


def our_sampler(
    apply, params: Any, told: Ours, noise, condition: tuple, null: tuple | None = None, guidance: float = 1.0
) -> Callable[[], np.ndarray]:
    """Draws from `apply(params, x, t, *condition)` in one program; guided where there is a null condition."""

    @jax.jit
    def sample(params, noise, condition, null):
        def network(x, t, condition):
            return apply(params, x, t, *condition)

        if null is not None:
            network = classifier_free_guidance(network, null, guidance, guided_channels=noise.shape[-1])

        def denoiser(x, t):
            output = network(*told.prediction.inputs(told.process, x, t), condition)
            return told.prediction.denoised(told.process, output, x, t)

        return integrate(told.solver, told.process, denoiser, noise, told.times)

    arguments = jax.device_put((params, noise, condition, null))
    return lambda: np.asarray(sample(*arguments))


def their_sampler(told: Callable, scheduler, steps: int, noise: np.ndarray) -> Callable[[], np.ndarray]:
    """The loop of a pipeline; `told(x, timestep)` is what its scheduler is told at x."""
    noise = torch.from_numpy(noise).permute(0, 3, 1, 2).contiguous()

    @torch.inference_mode()
    def sample():
        scheduler.set_timesteps(steps)
        x = noise
        for timestep in scheduler.timesteps:
            x = scheduler.step(told(x, timestep), timestep, x, return_dict=False)[0]
        return x.permute(0, 2, 3, 1).numpy()

    return sample


def random_like(model, *inputs) -> dict:
    """Random parameters of a network of ours, from the inputs it takes."""
    abstract = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return sd3.random_weights(meta.unbox(abstract)["params"])


def normal(size: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(size, *shape)).astype(np.float32)


CHAINS = {
    "DDIM, 50 steps": (DDIM(), 50, lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, **CHAIN)),
    "DPM-Solver++ 2M, 20 steps": (DPMpp2M(), 20, lambda: diffusers.DPMSolverMultistepScheduler(**CHAIN)),
}
"""(our solver, number of steps, a scheduler of diffusers) on DDPM's linear table."""


def unet_cases(options: Sampling) -> list[Case]:
    system, _ = config.load(str(CONFIGS / "ddpm.py"))
    own = system.model
    levels = ["AttnDownBlock2D" if i in own.attention_levels else "DownBlock2D" for i in range(len(own.widths))]
    reference = diffusers.UNet2DModel(
        sample_size=system.data.image_shape[0],
        in_channels=own.channels,
        out_channels=own.channels,
        block_out_channels=own.widths,
        down_block_types=levels,
        up_block_types=[name.replace("Down", "Up") for name in reversed(levels)],
        layers_per_block=own.blocks,
        attention_head_dim=None,
        norm_num_groups=own.groups,
        norm_eps=own.epsilon,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    ).eval()
    model = own.clone(**unet.sizes_from_config(reference.config))
    params = random_like(model, normal(1, system.data.image_shape), jnp.ones(1))
    weights = unet.to_diffusers(params)
    reference.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=True)

    def case(title: str) -> Case:
        solver, steps, scheduler = CHAINS[title]
        told = Ours(DDPM(), Eps(time_offset=-1 / 1000), solver, DDPM().times(steps, "trailing"))

        def of_size(size):
            noise = normal(size, system.data.image_shape)
            ours = our_sampler(lambda p, x, t: model.apply({"params": p}, x, t), params, told, noise, ())
            theirs = their_sampler(lambda x, k: reference(x, k, return_dict=False)[0], scheduler(), steps, noise)
            return ours, theirs

        return Case(f"U-Net, {title}", WANTED, of_size)

    return [case(title) for title in CHAINS]


def dit_cases(options: Sampling) -> list[Case]:
    system, _ = config.load(str(CONFIGS / "dit.py"))
    own, (side, _, channels) = system.model, system.data.image_shape
    reference = diffusers.DiTTransformer2DModel(
        sample_size=side,
        patch_size=own.patch_size,
        in_channels=channels,
        out_channels=2 * channels,
        num_layers=own.depth,
        num_attention_heads=own.num_heads,
        attention_head_dim=own.head_dim,
        num_embeds_ada_norm=own.num_classes,
    ).eval()
    model = own.clone(**dit.sizes_from_config(reference.config))
    params = random_like(model, normal(1, system.data.image_shape), jnp.ones(1), np.zeros(1, np.int32))
    weights = dit.to_diffusers(params, patch_size=model.patch_size)
    reference.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=True)

    def case(title: str) -> Case:
        solver, steps, scheduler = CHAINS[title]
        told = Ours(DDPM(), LearnedVariance(Eps(time_offset=-1 / 1000)), solver, DDPM().times(steps, "trailing"))

        def of_size(size):
            noise = normal(size, system.data.image_shape)
            label = np.arange(size, dtype=np.int32) % own.num_classes
            null = np.full_like(label, own.num_classes)
            both = torch.from_numpy(np.concatenate([label, null]).astype(np.int64))

            def network(x, k):
                output = reference(torch.cat([x, x]), k.expand(2 * size), class_labels=both, return_dict=False)[0]
                conditional, free = output[:, :channels].chunk(2)
                return free + options.guidance * (conditional - free)

            def apply(params, x, t, label):
                return model.apply({"params": params}, x, t, label)

            ours = our_sampler(apply, params, told, noise, (label,), (null,), options.guidance)
            return ours, their_sampler(network, scheduler(), steps, noise)

        return Case(f"DiT with guidance, {title}", WANTED, of_size)

    return [case(title) for title in CHAINS]


def sd3_cases(options: Sampling) -> list[Case]:
    model, params, reference = sd3.networks()
    steps = 28
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=options.shift)
    scheduler.set_timesteps(steps)
    told = Ours(RectifiedFlow(), Velocity(), Euler(), scheduler.sigmas.numpy())

    def of_size(size):
        batch = sd3.random_batch(2 * size)
        noise = batch["x_t"][:size]
        null, condition = zip(*(np.split(batch[name], 2) for name in ("context", "pooled")), strict=True)
        context, pooled = (torch.from_numpy(batch[name]) for name in ("context", "pooled"))

        def network(x, timestep):
            output = reference(
                hidden_states=torch.cat([x, x]),
                timestep=timestep.expand(2 * size),
                encoder_hidden_states=context,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
            free, conditional = output.chunk(2)
            return free + options.guidance * (conditional - free)

        def apply(params, x, t, context, pooled):
            return model.apply({"params": params}, x, t, context, pooled)

        ours = our_sampler(apply, params, told, noise, condition, null, options.guidance)
        return ours, their_sampler(network, scheduler, steps, noise)

    return [Case(f"MM-DiT with guidance, Euler, {steps} steps", None, of_size)]


CASES = {"unet": unet_cases, "dit": dit_cases, "sd3": sd3_cases}


def main(options: Sampling) -> None:
    keep_freed_memory()
    figures, rows = {}, []
    for case in (case for name in options.cases for case in CASES[name](options)):
        for size in options.batch_sizes:
            ours, theirs = case.of_size(size)
            np.testing.assert_allclose(ours(), theirs(), rtol=0, atol=1e-3 * np.abs(theirs()).max())
            seconds = sbs.medians(options.rounds, 2, ours=ours, torch=theirs)
            ratio = seconds["torch"] / seconds["ours"]
            rows.append([case.title, str(size), 1e3 * seconds["ours"], 1e3 * seconds["torch"], ratio])
            figure = {"ratio": ratio, **{f"{side}_ms": 1e3 * value for side, value in seconds.items()}}
            figures[f"{case.title}, batch {size}"] = figure | {"wanted": case.wanted}
    sbs.print_table("Samples of the same network", ["", "batch", "ours ms", "torch ms", "torch / ours"], rows)
    sbs.print_result(
        benchmark="sampling",
        ratio=min(figure["ratio"] for figure in figures.values()),
        by_case={
            name: {key: value and round(value, 3) for key, value in figure.items()} for name, figure in figures.items()
        },
        guidance=options.guidance,
    )


if __name__ == "__main__":
    main(tyro.cli(Sampling))
