"""Laws of the contract: what holds of every solver, whatever it integrates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.process import RectifiedFlow, velocity
from genjax.diffusion.processes import VP
from genjax.diffusion.solvers import SOLVERS, Ancestral, Euler, Solver, integrate, padded
from genjax.diffusion.solvers.integrate import Step, at, check_times, slope
from genjax.errors import InputError
from genjax.keys import row_keys
from tests.diffusion.solvers import problems

TIMES = np.linspace(0.9, 0.1, 9)
Z = np.linspace(-2, 2, 5, dtype=np.float32)

every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=str)
stochastic = pytest.mark.parametrize("solver", [s for s in SOLVERS if s.stochastic], ids=str)
deterministic = pytest.mark.parametrize("solver", [s for s in SOLVERS if not s.stochastic], ids=str)


def keys(number=5, seed=0):
    return row_keys(seed, jnp.arange(number))


@jax.jit(static_argnames=("solver", "trajectory"))
def solve(solver, z, times, keys, steps=None, trajectory=False):
    denoiser = problems.posterior_mean(RectifiedFlow())
    return integrate(solver, RectifiedFlow(), denoiser, z, times, keys=keys, steps=steps, trajectory=trajectory)


@every_solver
def test_it_says_what_it_is(solver):
    assert isinstance(solver, Solver)
    assert solver.order >= 1 and solver.evaluations_per_step >= 1


@every_solver
def test_a_trajectory_goes_from_the_start_to_the_sample_and_is_made_of_shorter_ones(solver):
    sample = solve(solver, Z, TIMES, keys())
    visited = solve(solver, Z, TIMES, keys(), trajectory=True)
    assert visited.shape == (9, 5)
    np.testing.assert_array_equal(visited[0], Z)
    np.testing.assert_allclose(visited[-1], sample, rtol=1e-5, atol=1e-6)
    if type(solver).__name__ not in ("Ancestral", "ReverseDiffusion", "EulerMaruyama"):  # whose last step has no noise
        with jax.disable_jit():  # another number of steps, another program: these run as they are written
            shorter = solve(solver, Z, TIMES[:4], keys())
        np.testing.assert_allclose(visited[3], shorter, rtol=1e-5, atol=1e-6)


@every_solver
def test_a_sample_depends_on_its_own_start_and_key_alone(solver):
    """Among others that start elsewhere, in another place, it is the same."""
    together = solve(solver, Z, TIMES, keys())
    mine, theirs = np.array([3, 0]), np.array([1, 4])  # rows there, and rows here
    start = jnp.asarray(Z[::-1] + 0.7).at[theirs].set(Z[mine])
    moved = solve(solver, start, TIMES, keys(seed=7).at[theirs].set(keys()[mine]))
    np.testing.assert_allclose(moved[theirs], together[mine], rtol=1e-5, atol=1e-6)


@stochastic
def test_another_key_gives_another_sample_and_the_same_key_the_same(solver):
    first, again, other = (solve(solver, Z, TIMES, keys(seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other) > 1e-4).all()


@stochastic
def test_noise_needs_keys(solver):
    with pytest.raises(InputError, match=f"{type(solver).__name__} draws noise, and needs one key per row"):
        integrate(solver, VP(), problems.posterior_mean(VP()), Z, TIMES)


@deterministic
def test_without_noise_keys_are_neither_needed_nor_used(solver):
    np.testing.assert_array_equal(solve(solver, Z, TIMES, None), solve(solver, Z, TIMES, keys()))


@every_solver
@pytest.mark.parametrize("steps", [2])
def test_the_network_runs_as_often_as_the_solver_says(solver, steps):
    calls = []

    def denoiser(x, t):
        calls.append(t.shape)
        return problems.posterior_mean(RectifiedFlow())(x, t)

    with jax.disable_jit():
        integrate(solver, RectifiedFlow(), denoiser, jnp.ones((2, 3)), np.linspace(0.9, 0.1, steps + 1), keys=keys(2))
    assert calls == [(2,)] * steps * solver.evaluations_per_step


@every_solver
def test_a_denoiser_that_is_undefined_at_data_matters_exactly_to_the_solvers_that_say_so(solver, stepwise):
    def denoiser(x, t):
        denoised = problems.posterior_mean(RectifiedFlow())(x, t)
        return denoised._replace(
            eps=jnp.where(t > 0, denoised.eps, jnp.nan), x_0=jnp.where(t > 0, denoised.x_0, jnp.nan)
        )

    x = integrate(solver, RectifiedFlow(), denoiser, Z, np.array([0.9, 0.5, 0.0]), keys=keys())
    assert np.isnan(x).any() == solver.evaluates_last


@every_solver
def test_one_program_serves_every_seed_and_any_number_of_steps_up_to_its_bound(solver):
    """And what it makes of fewer steps is what they make by themselves."""
    traced = []

    @jax.jit
    def sample(times, steps, seed):
        def denoiser(x, t):
            traced.append(t)
            return problems.posterior_mean(RectifiedFlow())(x, t)

        return integrate(solver, RectifiedFlow(), denoiser, Z, times, keys=row_keys(seed, jnp.arange(5)), steps=steps)

    for seed, steps in ((0, 8), (1, 3), (2, 1)):
        x = sample(padded(np.linspace(0.9, 0.1, steps + 1), 8), steps, seed)
        if steps == 3:
            with jax.disable_jit():
                bare = solve(solver, Z, np.linspace(0.9, 0.1, 4), keys(seed=1))
            np.testing.assert_allclose(x, bare, rtol=1e-5, atol=1e-6)
    assert len(traced) == solver.evaluations_per_step


@every_solver
def test_a_whole_path_is_finite_where_the_log_snr_is_not(solver, process, stepwise):
    if solver.needs and not isinstance(solver, Euler):
        pytest.skip("needs more of a process; see test_fit.py")
    x = integrate(solver, process, problems.posterior_mean(process), Z, np.array([1.0, 0.5, 0.0]), keys=keys())
    assert np.isfinite(x).all()


def test_a_step_draws_for_each_row_from_its_key_and_other_noise_for_other_draws():
    step = Step(jnp.int32(0), jnp.int32(1), jnp.float32(1), jnp.float32(0), keys(3))
    noise = step.noise(jnp.zeros((3, 4)))
    np.testing.assert_array_equal(noise[1:2], step._replace(keys=keys(3)[1:2]).noise(jnp.zeros((1, 4))))
    assert (np.abs(noise - step.noise(jnp.zeros((3, 4)), 1)) > 1e-3).all()


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ([1.0, 0.5, 0.5, 0.0], "each below the one before it"),
        ([1.0, 0.2, 0.5, 0.0], "each below the one before it"),
        ([1.0], "at least two"),
        ([1.5, 0.0], "lie in .0, 1., not from 1.5 to 0"),
    ],
)
def test_times_that_do_not_fall_are_refused(times, sentence):
    with pytest.raises(InputError, match=sentence):
        integrate(Euler(), RectifiedFlow(), problems.posterior_mean(RectifiedFlow()), Z, np.array(times))


def test_times_that_rise_lead_back_to_noise():
    check_times(1 - TIMES)
    back = solve(Euler(), solve(Euler(), Z, np.linspace(0.9, 0.1, 257), None), np.linspace(0.1, 0.9, 257), None)
    np.testing.assert_allclose(back, Z, atol=0.02)


def test_padding_repeats_the_last_time_up_to_the_bound():
    np.testing.assert_array_equal(padded(np.array([1.0, 0.5, 0.0]), 4), [1.0, 0.5, 0.0, 0.0, 0.0])
    with pytest.raises(InputError, match="the grid has 8 steps, and the bound is 7"):
        padded(TIMES, 7)


def test_the_slope_is_the_velocity_of_what_the_denoiser_says(process):
    denoiser, t = problems.posterior_mean(process), jnp.float32(0.4)
    denoised = at(denoiser, Z, t)
    np.testing.assert_array_equal(slope(process, denoiser, Z, t), velocity(process, *denoised[:2], jnp.full(5, t)))


def test_the_last_step_is_known_where_there_are_others_that_are_skipped():
    """An ancestral sample ends without noise, at the mean of its last step."""
    times = padded(np.array([0.9, 0.5]), 3)
    skipped = solve(Ancestral(), Z, times, keys(), steps=1)
    without = solve(Ancestral(), Z, times, keys(seed=1), steps=1)
    np.testing.assert_array_equal(skipped, without)


@stochastic
def test_with_noise_no_way_leads_back_from_data(solver):
    with pytest.raises(InputError, match=f"{type(solver).__name__} draws noise, and goes no way from data to noise"):
        integrate(solver, VP(), problems.posterior_mean(VP()), Z, TIMES[::-1], keys=keys())
