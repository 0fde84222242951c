"""Laws of the solvers, on data whose probability-flow ODE is solved by hand.

Gaussian data N(m, s^2) make x_t ~ N(alpha m, alpha^2 s^2 + sigma^2), and the flow carries a standard score z along
x_t = alpha m + sqrt(alpha^2 s^2 + sigma^2) z. The denoiser is the posterior mean.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.predictions import Denoised
from genjax.diffusion.process import RectifiedFlow, coefficients, like
from genjax.diffusion.solvers import DPMpp2M, Euler, Heun, integrate, sampling_times

SOLVERS = {"euler": Euler(), "heun": Heun(), "dpmpp_2m": DPMpp2M()}
MEAN, STD = 0.5, 0.4

every_solver = pytest.mark.parametrize("name", SOLVERS)


def posterior_mean(process, mean=MEAN, std=STD):
    """The best denoiser of Gaussian data."""

    def denoiser(x, t):
        c = coefficients(process, like(t, x))
        variance = c.alpha**2 * std**2 + c.sigma**2
        score = (x - c.alpha * mean) / variance
        return Denoised(x_0=mean + c.alpha * std**2 * score, eps=c.sigma * score)

    return denoiser


def solution(process, z, t):
    alpha, sigma = process.alpha(t), process.sigma(t)
    return alpha * MEAN + jnp.sqrt(alpha**2 * STD**2 + sigma**2) * z


@functools.partial(jax.jit, static_argnames=("name", "process", "trajectory"))
def solve_gaussian(name, process, z, times, trajectory=False):
    """The numerical solution, and its largest error."""
    start = solution(process, z, times[0])
    x = integrate(SOLVERS[name], process, posterior_mean(process), start, times, trajectory=trajectory)
    return x, jnp.abs(x - solution(process, z, times[-1])).max()


@every_solver
@pytest.mark.parametrize("path", ["inner", "whole"])
@pytest.mark.parametrize("which", ["rectified flow", "cosine"])
def test_halving_the_step_divides_the_error_by_two_to_the_order(name, path, which, cosine, x64):
    process = {"rectified flow": RectifiedFlow(), "cosine": cosine}[which]
    ends = {"inner": (0.9, 0.1), "whole": (1.0, 0.0)}[path]
    steps, z = np.array([512, 1024]), np.linspace(-2, 2, 5)
    errors = np.array([solve_gaussian(name, process, z, np.linspace(*ends, n + 1))[1] for n in steps])
    if name == "dpmpp_2m" and path == "whole":
        errors /= np.log(steps)  # its steps at the ends of a path do not become small in log-SNR
    order = np.log2(errors[0] / errors[1])
    np.testing.assert_allclose(order, {"euler": 1, "heun": 2, "dpmpp_2m": 2}[name], atol=0.15)
    assert errors[1] < {"euler": 2e-3, "heun": 2e-6, "dpmpp_2m": 1e-5}[name]


@every_solver
def test_samples_have_the_mean_and_variance_of_the_data(name, process):
    z = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    x, _ = solve_gaussian(name, process, (z - z.mean()) / z.std(), sampling_times(128))
    np.testing.assert_allclose([x.mean(), x.std()], [MEAN, STD], rtol=0.015)


@every_solver
def test_straight_lines_are_followed_exactly_in_any_steps(name):
    x_0, eps = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    times = np.array([1.0, 0.9, 0.35, 0.3, 0.0])
    x = integrate(SOLVERS[name], RectifiedFlow(), lambda x, t: Denoised(x_0, eps), eps, times, trajectory=True)
    t = times[:, None, None]
    np.testing.assert_allclose(x, (1 - t) * x_0 + t * eps, atol=1e-6)


def test_dpmpp_2m_follows_the_path_to_a_point_exactly_under_any_process(process):
    # With one estimate of the data throughout, the exponential integrator has nothing to approximate.
    point, eps = 0.3, jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    times = np.array([0.95, 0.9, 0.35, 0.3, 0.0])
    path = [process.alpha(t) * point + process.sigma(t) * eps for t in jnp.asarray(times, jnp.float32)]
    denoiser = posterior_mean(process, mean=point, std=0.0)
    x = integrate(SOLVERS["dpmpp_2m"], process, denoiser, path[0], times, trajectory=True)
    np.testing.assert_allclose(x, np.stack(path), atol=1e-6)


@every_solver
def test_one_step_to_the_data_is_finite_where_the_log_snr_is_not(name, process):
    x, _ = solve_gaussian(name, process, np.linspace(-2, 2, 5, dtype=np.float32), np.array([1.0, 0.0]))
    assert np.isfinite(x).all()


@every_solver
def test_a_trajectory_goes_from_the_start_to_the_sample(name):
    z, times = np.linspace(-2, 2, 5, dtype=np.float32), sampling_times(8)
    sample, _ = solve_gaussian(name, RectifiedFlow(), z, times)
    visited, _ = solve_gaussian(name, RectifiedFlow(), z, times, trajectory=True)
    assert visited.shape == (9, 5)
    np.testing.assert_allclose(visited[0], z, rtol=1e-6)
    np.testing.assert_allclose(visited[-1], sample, rtol=1e-5)


@every_solver
def test_a_trajectory_is_made_of_shorter_ones(name):
    z, times = np.linspace(-2, 2, 5, dtype=np.float32), sampling_times(8)
    visited, _ = solve_gaussian(name, RectifiedFlow(), z, times, trajectory=True)
    shorter, _ = solve_gaussian(name, RectifiedFlow(), z, times[:4], trajectory=True)
    np.testing.assert_allclose(visited[:4], shorter, rtol=1e-5)


@every_solver
def test_a_sample_does_not_depend_on_its_batch(name):
    z, times = np.linspace(-2, 2, 5, dtype=np.float32), sampling_times(8)
    together, _ = solve_gaussian(name, RectifiedFlow(), z, times)
    alone = [solve_gaussian(name, RectifiedFlow(), z[i : i + 1], times)[0][0] for i in range(5)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@every_solver
@pytest.mark.parametrize("steps", [1, 3])
def test_the_network_runs_as_often_as_the_solver_says(name, steps):
    calls = []

    def denoiser(x, t):
        calls.append(t.shape)
        return posterior_mean(RectifiedFlow())(x, t)

    with jax.disable_jit():
        integrate(SOLVERS[name], RectifiedFlow(), denoiser, jnp.ones((2, 3)), sampling_times(steps))
    assert calls == [(2,)] * steps * SOLVERS[name].evaluations_per_step


@every_solver
def test_the_network_is_traced_as_often_for_many_steps_as_for_one_and_not_again(name):
    calls = []

    @jax.jit
    def sample(x, times):
        def denoiser(x, t):
            calls.append(t)
            return posterior_mean(RectifiedFlow())(x, t)

        return integrate(SOLVERS[name], RectifiedFlow(), denoiser, x, times)

    sample(jnp.ones(5), sampling_times(28))
    assert len(calls) == SOLVERS[name].evaluations_per_step
    sample(jnp.zeros(5), sampling_times(28, shift=3))
    assert len(calls) == SOLVERS[name].evaluations_per_step


@pytest.mark.parametrize("spacing", ["uniform", "sd3"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 28])
def test_sampling_times_fall_from_one_to_zero(steps, shift, spacing):
    times = sampling_times(steps, shift=shift, spacing=spacing)
    assert times.shape == (steps + 1,) and times.dtype == np.float64
    assert times[0] == 1 and times[-1] == 0 and (np.diff(times) < 0).all()


def test_without_a_shift_uniform_times_are_evenly_spaced():
    np.testing.assert_allclose(np.diff(sampling_times(28)), -1 / 28)


def test_sd3_shifts_its_smallest_time_twice():
    np.testing.assert_allclose(sampling_times(28, shift=3, spacing="sd3")[-2], 0.00893, atol=5e-6)
    np.testing.assert_allclose(sampling_times(28, shift=3, spacing="uniform")[-2], 0.1)
    np.testing.assert_allclose(sampling_times(50, spacing="sd3")[-2], 0.001)


@pytest.fixture(scope="module")
def golden():
    """Trajectories of diffusers' samplers; see tests/golden/make_solvers.py."""
    with np.load(Path(__file__).parents[1] / "golden" / "solvers.npz") as file:
        return dict(file)


def golden_model(x, t):
    t = like(t, x)
    x_0 = jnp.tanh(2 * x + t)
    return Denoised(x_0, eps=x_0 + (x - x_0) / t)


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("euler_28_shift3", "euler"),
        ("euler_50_shift1", "euler"),
        ("dpmpp_2m_20_shift1", "dpmpp_2m"),
        ("dpmpp_2m_20_shift3", "dpmpp_2m"),
    ],
)
def test_trajectories_equal_those_of_diffusers(golden, run, name):
    assert run in json.loads(str(golden["metadata"]))["runs"]
    times = golden[f"{run}.times"]
    x = integrate(SOLVERS[name], RectifiedFlow(), golden_model, jnp.asarray(golden["x_init"]), times, trajectory=True)
    np.testing.assert_allclose(x, golden[f"{run}.x"], atol=2e-6)


@pytest.mark.parametrize(("steps", "shift"), [(28, 3), (50, 1)])
def test_sd3_times_equal_those_of_diffusers(golden, steps, shift):
    times = golden[f"euler_{steps}_shift{shift}.times"]
    np.testing.assert_allclose(sampling_times(steps, shift=shift, spacing="sd3"), times, atol=1e-7)
