"""Golden trajectories of diffusers' schedulers on an analytic model.

    python tests/golden/make_solvers.py        (made with diffusers 0.42.1 and torch 2.13.0 on a CPU)

writes solvers.npz beside this script. Three processes of a time t in [0, 1], all with s = sigma / alpha = t / (1 - t):

    flow    x_t = (1 - t) x_0 + t eps                       vp    that divided by sqrt((1 - t)^2 + t^2)
    ve      x_t = x_0 + s eps, that divided by 1 - t

The model is x0(x, t) = tanh(2 x + t), of ve at x / sqrt(1 + s^2), and every scheduler is given what it takes (velocity,
noise, data, or EDM's F) at its own sigma, not at a rounded timestep. Arrays, N steps:

    x_init, x_one       (4, 3), (1, 4, 3)   what runs start from, of the norm of noise at their first time
    noise               (30, 2, 4, 3)       noise[i, 0] is added in step i; noise[i, 1] by a corrector before it
    <run>.times         (N + 1,)            float64, the last one 0
    <run>.x             (N + 1, 4, 3)       the state at each time, float32 as the schedulers compute; the last one is
                                            the mean of the last step
    metadata            ()                  a JSON string: reference, versions, and of each run the process, the
                                            scheduler, its arguments, and the solver of ours that equals it

FlowMatchEulerDiscreteScheduler stores its smallest sigma after shifting and shifts the grid again: of 28 steps at a
shift of 3 it is 0.00893, not 0.00299. Flow sigmas of the multistep schedulers start at s(0.999), below 1. Multistep
schedulers take a last step of order 1 to 0, and of fewer than 15 steps lower the order of the one before it too.
DDPMScheduler adds noise in its last step unless that is from timestep 0, as it is with leading spacing alone.
"""

import json
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers.schedulers.deprecated import KarrasVeScheduler


class Run(NamedTuple):
    """A scheduler with its arguments, and the solver of ours with its options."""

    process: str
    scheduler: type
    steps: int
    arguments: dict
    solver: str
    options: dict = {}


def multistep(order: int, algorithm: str = "dpmsolver++", **others) -> dict:
    return dict(algorithm_type=algorithm, solver_order=order, solver_type="midpoint", **others)


FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
VP = dict(beta_schedule="linear", prediction_type="sample")
CHAIN = dict(clip_sample=False, timestep_spacing="trailing", **VP)
NOISE = dict(beta_schedule="linear", prediction_type="epsilon")
AS_PUBLISHED = dict(published=True)
SDE = "sde-dpmsolver++"
d = diffusers
RUNS = {
    "euler_28_shift3": Run("flow", d.FlowMatchEulerDiscreteScheduler, 28, dict(shift=3.0), "Euler"),
    "euler_50_shift1": Run("flow", d.FlowMatchEulerDiscreteScheduler, 50, dict(shift=1.0), "Euler"),
    "heun_flow": Run("flow", d.FlowMatchHeunDiscreteScheduler, 10, dict(shift=3.0), "Heun"),
    "dpmpp_2m_20_shift1": Run(
        "flow", d.DPMSolverMultistepScheduler, 20, multistep(2, flow_shift=1.0, **FLOW), "DPMpp2M"
    ),
    "dpmpp_2m_20_shift3": Run(
        "flow", d.DPMSolverMultistepScheduler, 20, multistep(2, flow_shift=3.0, **FLOW), "DPMpp2M"
    ),
    "dpmpp_3m_flow": Run(
        "flow", d.DPMSolverMultistepScheduler, 16, multistep(3, flow_shift=3.0, **FLOW), "DPMpp3M", AS_PUBLISHED
    ),
    "unipc_flow": Run("flow", d.UniPCMultistepScheduler, 16, dict(solver_order=2, flow_shift=3.0, **FLOW), "UniPC2"),
    "dpmpp_1": Run("vp", d.DPMSolverMultistepScheduler, 16, multistep(1, **VP), "DPMpp1"),
    "dpmpp_2m": Run("vp", d.DPMSolverMultistepScheduler, 16, multistep(2, **VP), "DPMpp2M"),
    "dpmpp_3m": Run("vp", d.DPMSolverMultistepScheduler, 16, multistep(3, **VP), "DPMpp3M", AS_PUBLISHED),
    "dpmpp_sde_2m": Run("vp", d.DPMSolverMultistepScheduler, 16, multistep(2, SDE, **VP), "DPMppSDE2M"),
    "unipc": Run("vp", d.UniPCMultistepScheduler, 16, dict(solver_order=2, solver_type="bh2", **VP), "UniPC2"),
    "ddim": Run("vp", d.DDIMScheduler, 10, CHAIN, "DDIM"),
    "ddim_noisy": Run("vp", d.DDIMScheduler, 10, CHAIN, "DDIM", dict(eta=0.6)),
    "ddpm_small": Run("vp", d.DDPMScheduler, 10, dict(variance_type="fixed_small", **CHAIN), "Ancestral"),
    "ddpm_large": Run(
        "vp",
        d.DDPMScheduler,
        10,
        dict(variance_type="fixed_large", **CHAIN | dict(timestep_spacing="leading")),
        "Ancestral",
        dict(variance="large"),
    ),
    "euler_ve": Run("ve", d.EulerDiscreteScheduler, 10, dict(use_karras_sigmas=True, **VP), "DPMpp1"),
    "euler_ancestral": Run("ve", d.EulerAncestralDiscreteScheduler, 10, NOISE, "DDIM", dict(eta=1.0)),
    "heun_ve": Run("ve", d.HeunDiscreteScheduler, 10, dict(use_karras_sigmas=True, **VP), "EDMHeun"),
    "edm_euler": Run("ve", d.EDMEulerScheduler, 10, {}, "DPMpp1"),
    "edm_dpmpp_2m": Run("ve", d.EDMDPMSolverMultistepScheduler, 16, multistep(2), "DPMpp2M"),
    "edm_dpmpp_3m": Run("ve", d.EDMDPMSolverMultistepScheduler, 16, multistep(3), "DPMpp3M", AS_PUBLISHED),
    "edm_dpmpp_sde_2m": Run("ve", d.EDMDPMSolverMultistepScheduler, 16, multistep(2, SDE), "DPMppSDE2M"),
    "edm_heun_churned": Run(
        "ve",
        KarrasVeScheduler,
        10,
        dict(sigma_min=0.1, sigma_max=8.0, s_churn=2.0, s_min=0.05, s_max=50.0, s_noise=1.007),
        "EDMHeun",
        dict(churn=2.0, churn_min=0.05, churn_max=50.0, churn_noise=1.007),
    ),
    "reverse_diffusion_langevin": Run(
        "ve", d.ScoreSdeVeScheduler, 10, dict(sigma_max=50.0), "ReverseDiffusion", dict(corrector=dict(snr=0.15))
    ),
}


def model(process: str, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """x0(x, t) at sigma / alpha = s, or, of flow, at sigma = s."""
    if process == "flow":
        return torch.tanh(2 * x + s)
    return torch.tanh(2 * x / (torch.sqrt(1 + s**2) if process == "ve" else 1) + s / (1 + s))


def told(run: Run, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """What the scheduler takes from its network for the estimate of the data."""
    x_0 = model(run.process, x, s)
    if run.process == "flow":
        return (x - x_0) / s
    if "EDM" in run.scheduler.__name__:  # x_0 = c_skip x + c_out F, for data of standard deviation 1/2
        skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / torch.sqrt(s**2 + 0.25)
        return (x_0 - skip * x) / out
    if run.arguments.get("prediction_type") == "epsilon":
        return (x - x_0) / s
    if run.scheduler is KarrasVeScheduler:
        return (x_0 - x) / s
    if run.scheduler is diffusers.ScoreSdeVeScheduler:
        return (x_0 - x) / s**2
    return x_0


def noise_levels(run: Run, scheduler) -> torch.Tensor:
    """sigma / alpha (of flow sigma) at the N + 1 times."""
    if run.scheduler is KarrasVeScheduler:
        return torch.cat([scheduler.schedule.flip(0), torch.zeros(1)])  # squares of its sigma_max to its sigma_min
    if run.scheduler is diffusers.ScoreSdeVeScheduler:
        return torch.cat([scheduler.discrete_sigmas.flip(0), torch.zeros(1)])
    if "Heun" in run.scheduler.__name__:  # each level but the ends stands there twice
        return torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas
    kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    return torch.cat([torch.sqrt((1 - kept) / kept), torch.zeros(1)]).float()


def states(run: Run, scheduler, x: torch.Tensor, levels: torch.Tensor) -> list[torch.Tensor]:
    visited = [x]
    for i, timestep in enumerate(scheduler.timesteps):
        if run.scheduler is KarrasVeScheduler:
            hat, s = scheduler.add_noise_to_input(x, levels[i])
            step = scheduler.step(told(run, hat, s), s, levels[i + 1], hat)
            x = step.prev_sample
            if levels[i + 1] != 0:
                output = told(run, x, levels[i + 1])
                x = scheduler.step_correct(output, s, levels[i + 1], hat, x, step.derivative).prev_sample
        elif run.scheduler is diffusers.ScoreSdeVeScheduler:
            x = scheduler.step_correct(told(run, x, levels[i]), x).prev_sample
            step = scheduler.step_pred(told(run, x, levels[i]), timestep, x)
            x = step.prev_sample_mean if levels[i + 1] == 0 else step.prev_sample
        elif "Heun" in run.scheduler.__name__:
            x = scheduler.step(told(run, x, scheduler.sigmas[i]), timestep, x).prev_sample
            if i % 2 == 0 and i + 1 < len(scheduler.timesteps):
                continue
        else:
            more = {"eta": run.options["eta"]} if run.options.get("eta") and "DDIM" in run.scheduler.__name__ else {}
            x = scheduler.step(told(run, x, levels[i]), timestep, x, **more).prev_sample
        visited.append(x)
    return visited


def trajectory(run: Run, x: torch.Tensor, noise: torch.Tensor) -> dict[str, np.ndarray]:
    """Times and states of a run that starts from x times the noise of its first time."""
    scheduler = run.scheduler(**run.arguments)
    scheduler.set_timesteps(run.steps)
    if run.scheduler is diffusers.ScoreSdeVeScheduler:
        scheduler.set_sigmas(run.steps)
    elif hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    levels = noise_levels(run, scheduler)
    if run.process == "ve":
        x = x * torch.sqrt(1 + levels[0] ** 2)
    corrected = run.scheduler is diffusers.ScoreSdeVeScheduler
    draws = iter([n.reshape(x.shape) for pair in noise for n in (pair.flip(0) if corrected else pair[:1])])
    source = f"{run.scheduler.__module__}.randn_tensor"
    drawn = mock.patch(source, lambda *_, **__: next(draws)) if noisy(run) else mock.MagicMock()
    with drawn:
        visited = states(run, scheduler, x, levels)
    levels = levels.numpy().astype(np.float64)
    times = levels if run.process == "flow" else levels / (1 + levels)
    return {"times": times, "x": torch.stack(visited).reshape(-1, 4, 3).numpy()}


def noisy(run: Run) -> bool:
    return bool(run.options) and run.options != AS_PUBLISHED or run.solver in ("Ancestral", "DPMppSDE2M")


def started(run: Run, x: torch.Tensor) -> torch.Tensor:
    """The norms of a Langevin step are those of a batch in diffusers, and of a sample in genjax: one sample."""
    return x[None] if run.scheduler is diffusers.ScoreSdeVeScheduler else x


if __name__ == "__main__":
    x_init = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(30, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    arrays = {"x_init": x_init.numpy(), "noise": noise.numpy()}
    for name, run in RUNS.items():
        for what, array in trajectory(run, started(run, x_init), noise).items():
            arrays[f"{name}.{what}"] = array
    metadata = {
        "reference": "diffusers schedulers, float32, CPU",
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "runs": {name: [run.process, run.scheduler.__name__, *run[2:]] for name, run in RUNS.items()},
    }
    path = Path(__file__).with_name("solvers.npz")
    np.savez_compressed(path, metadata=json.dumps(metadata), **arrays)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
