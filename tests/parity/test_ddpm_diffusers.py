"""DDPM's tables and respacings equal those of diffusers' DDPMScheduler, at other numbers than its defaults too."""

import jax
import numpy as np
import pytest

from genjax.diffusion.processes import DDPM

diffusers = pytest.importorskip("diffusers")

NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("schedule", NAMES)
def test_alphas_are_those_of_diffusers(schedule, steps):
    betas = dict(beta_start=0.0005, beta_end=0.03)
    theirs = diffusers.DDPMScheduler(steps, beta_schedule=NAMES[schedule], **betas).alphas_cumprod.numpy()
    ours = DDPM(schedule, **betas, steps=steps).alpha(np.arange(1, steps + 1) / steps) ** 2
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 3, 17, 20, 250, 999])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_respaced_times_are_those_of_diffusers(spacing, steps):
    scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(DDPM().times(steps, spacing)[:-1] * 1000 - 1, scheduler.timesteps.numpy(), atol=1e-9)
