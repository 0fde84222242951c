"""Each step of each solver equals that of diffusers' scheduler on the same denoiser, at other seeds and more steps.

The runs are those of tests/golden/make_solvers.py, made here and now.
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from genjax.diffusion.guidance import clipped
from genjax.diffusion.predictions import Denoised
from genjax.diffusion.processes import DDPM
from genjax.diffusion.solvers import DDIM, integrate
from tests.diffusion.solvers.problems import PROCESSES, replayed

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def script():
    path = Path(__file__).parents[1] / "golden" / "make_solvers.py"
    spec = importlib.util.spec_from_file_location("make_solvers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = script()


# More steps by ten: diffusers' DDIM goes back by 1000 // steps, which is where its next step begins for 20, not for 17.
@pytest.mark.parametrize("extra", [0, 10])
@pytest.mark.parametrize("name", make.RUNS)
def test_every_step_is_that_of_diffusers(name, extra):
    run = make.RUNS[name]
    run = run._replace(steps=run.steps + extra)
    generator = torch.Generator().manual_seed(3 + extra)
    x, noise = torch.randn(4, 3, generator=generator), torch.randn(60, 2, 4, 3, generator=generator)
    theirs = make.trajectory(run, make.started(run, x), noise)
    with jax.enable_x64(True):
        told = [run.process, run.scheduler.__name__, *run[2:]]
        ours = replayed(told, theirs["times"], np.float64(theirs["x"][0]), noise.numpy())
        scale = PROCESSES[run.process].sigma(theirs["times"])[0]
    last = -1 if run.solver == "Heun" else None  # theirs ends with an Euler step
    np.testing.assert_allclose(ours[:last], (theirs["x"] / scale)[:last], rtol=0, atol=1e-5)


def test_a_step_from_a_clipped_estimate_is_that_of_diffusers():
    """With `use_clipped_model_output`, as in ADM's own code; without, theirs leaves the noise of another estimate."""
    table = dict(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    scheduler = diffusers.DDIMScheduler(**table, clip_sample=True)
    scheduler.set_timesteps(10)
    process, rng = DDPM("cosine"), np.random.default_rng(0)
    x, eps = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    for step in (0, 4, 8):
        moment = scheduler.timesteps[step]
        theirs = scheduler.step(torch.tensor(eps), moment, torch.tensor(x), use_clipped_model_output=True).prev_sample
        times = (np.array([moment, moment - 100]) + 1) / 1000

        def denoiser(x_t, t):
            alpha, sigma = (part(t[0]) for part in (process.alpha, process.sigma))
            return Denoised((x_t - sigma * eps) / alpha, eps)

        ours = integrate(DDIM(), process, clipped(process, denoiser, 1.0), x, times)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
