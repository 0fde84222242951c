"""Golden tables of diffusers' DDPM schedules: cumulative alphas, the times of its respacings, and posterior variances.

    python tests/golden/make_ddpm_tables.py        (made with diffusers 0.42.1 and torch 2.13.0 on a CPU)

writes ddpm_tables.npz beside this script. For each schedule `linear`, `scaled_linear` (0.00085 to 0.012) and `cosine`:

    <schedule>.alphas_cumprod       (1000,)   float32, of DDPMScheduler
    <schedule>.variance             (1000,)   float32, `fixed_small` of the posterior from a timestep to the one before
    <spacing>_<steps>               (steps,)  int, timesteps from noise to data, for leading, linspace and trailing
    metadata                        ()        a JSON string: reference and versions
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

SCHEDULES = {
    "linear": dict(beta_schedule="linear"),
    "scaled_linear": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
}
SPACINGS = [(spacing, steps) for spacing in ("leading", "linspace", "trailing") for steps in (1, 7, 50, 1000)]


def tables() -> dict[str, np.ndarray]:
    arrays = {}
    for name, arguments in SCHEDULES.items():
        scheduler = diffusers.DDPMScheduler(variance_type="fixed_small", **arguments)
        arrays[f"{name}.alphas_cumprod"] = scheduler.alphas_cumprod.numpy()
        arrays[f"{name}.variance"] = np.array([scheduler._get_variance(t).item() for t in range(1000)], np.float32)
    for spacing, steps in SPACINGS:
        scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
        scheduler.set_timesteps(steps)
        arrays[f"{spacing}_{steps}"] = scheduler.timesteps.numpy()
    return arrays


if __name__ == "__main__":
    metadata = {"reference": "DDPMScheduler", "diffusers": diffusers.__version__, "torch": torch.__version__}
    path = Path(__file__).with_name("ddpm_tables.npz")
    np.savez_compressed(path, metadata=json.dumps(metadata), **tables())
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
