"""Golden vectors of diffusers' flow-matching samplers on an analytic model: times, trajectories and x0 predictions.

    python tests/golden/make_solvers.py        (made with diffusers 0.42.1 and torch 2.13.0 on a CPU)

writes solvers.npz beside this script. Times are sigmas in [0, 1]: x_t = (1 - t) x_0 + t eps. The model is

    x0(x, t) = tanh(2 x + t),        velocity v(x, t) = (x - x0(x, t)) / t        (= eps - x_0)

and every scheduler is given v at its own float32 sigma, not at a rounded timestep. Arrays, N steps, all float32:

    x_init              (4, 3)         the state at the first time
    <run>.times         (N + 1,)       the sigmas used, the last one 0
    <run>.x             (N + 1, 4, 3)  the state at each time; x[0] = x_init
    <run>.x0            (N, 4, 3)      the x0 prediction made at times[:-1]
    metadata            ()             a JSON string: reference, versions, the arguments of each run

with s(u) = shift u / (1 + (shift - 1) u) and the runs

    euler_28_shift3, euler_50_shift1         FlowMatchEulerDiscreteScheduler: times[:-1] = s(linspace(1, s(1/1000), N)).
        The smallest sigma is shifted twice: at shift 3 it is 0.00893, not 0.00299.
    dpmpp_2m_20_shift1, dpmpp_2m_20_shift3   DPMSolverMultistepScheduler: dpmsolver++, order 2, midpoint, flow sigmas.
        times[:-1] = s(linspace(0, 0.999, N + 1)[:0:-1]), which starts at s(0.999), below 1; the first step and the last
        one, to 0, are of order 1.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

DPMPP_2M = dict(
    use_flow_sigmas=True,
    prediction_type="flow_prediction",
    algorithm_type="dpmsolver++",
    solver_order=2,
    solver_type="midpoint",
)
RUNS = {
    "euler_28_shift3": (diffusers.FlowMatchEulerDiscreteScheduler, 28, dict(shift=3.0)),
    "euler_50_shift1": (diffusers.FlowMatchEulerDiscreteScheduler, 50, dict(shift=1.0)),
    "dpmpp_2m_20_shift1": (diffusers.DPMSolverMultistepScheduler, 20, dict(flow_shift=1.0, **DPMPP_2M)),
    "dpmpp_2m_20_shift3": (diffusers.DPMSolverMultistepScheduler, 20, dict(flow_shift=3.0, **DPMPP_2M)),
}


def x0_prediction(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(2 * x + t)


def trajectory(scheduler, steps: int, x: torch.Tensor) -> dict[str, np.ndarray]:
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    states, predictions = [x], []
    for t, timestep in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        predictions.append(x0_prediction(x, t))
        x = scheduler.step((x - predictions[-1]) / t, timestep, x).prev_sample
        states.append(x)
    return {"times": scheduler.sigmas.numpy(), "x": torch.stack(states).numpy(), "x0": torch.stack(predictions).numpy()}


if __name__ == "__main__":
    x_init = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    arrays = {"x_init": x_init.numpy()}
    for run, (scheduler, steps, arguments) in RUNS.items():
        for name, array in trajectory(scheduler(**arguments), steps, x_init).items():
            arrays[f"{run}.{name}"] = array
    metadata = {
        "reference": "diffusers schedulers, float32, CPU",
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "model": "x0(x, t) = tanh(2 x + t); v(x, t) = (x - x0) / t",
        "runs": {run: [scheduler.__name__, steps, arguments] for run, (scheduler, steps, arguments) in RUNS.items()},
    }
    path = Path(__file__).with_name("solvers.npz")
    np.savez(path, metadata=json.dumps(metadata), **arrays)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
