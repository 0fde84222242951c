"""Laws of the adaptive solver: errors that follow the tolerance, and samples that know nothing of one another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from genjax.diffusion.adaptive import ERROR, NODES, STAGES, DormandPrince
from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.processes import VP
from genjax.errors import InputError
from tests.diffusion.solvers import problems

Z = np.array([[-2.0, 0.1], [0.3, 1.5], [4.0, -9.0]])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def solved(solver, process, last, z):
    start = problems.solution(process, z, jnp.float64(1))
    solution = solver.sample(process, problems.posterior_mean(process), start, last=last)
    return solution, jnp.abs(solution.x - problems.solution(process, z, jnp.float64(last))).max()


def test_the_table_is_that_of_scipy():
    from scipy.integrate import RK45

    for row, theirs in zip(STAGES, RK45.A[1:], strict=False):
        np.testing.assert_allclose(row, theirs[: len(row)], rtol=1e-15)
    np.testing.assert_allclose(STAGES[-1], RK45.B, rtol=1e-15)
    np.testing.assert_allclose(ERROR, -RK45.E, rtol=1e-14)
    np.testing.assert_allclose(NODES, [sum(row) for row in STAGES], rtol=1e-15)


@pytest.mark.parametrize(("process", "last"), [(RectifiedFlow(), 0.0), (VP(), 1e-3)], ids=["flow", "VP"])
def test_the_error_falls_in_proportion_to_the_tolerance(process, last, x64):
    tolerances = [1e-6, 1e-8, 1e-10]
    found = [solved(DormandPrince(rtol=tol, atol=tol), process, last, Z) for tol in tolerances]
    errors = np.array([float(error) for _, error in found])
    assert all(solution.arrived.all() for solution, _ in found)
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.15)
    assert (errors < 5 * np.array(tolerances)).all()


def test_a_sample_does_not_depend_on_its_batch(x64):
    together, _ = solved(DormandPrince(), RectifiedFlow(), 0.0, Z)
    for i in range(3):
        alone, _ = solved(DormandPrince(), RectifiedFlow(), 0.0, Z[i : i + 1])
        np.testing.assert_allclose(alone.x[0], together.x[i], rtol=1e-12)
        assert alone.evaluations[0] == together.evaluations[i]
    assert len(set(map(int, together.evaluations))) > 1


@pytest.mark.slow
def test_it_takes_about_as_many_evaluations_as_scipy(x64):
    for tolerance in (1e-4, 1e-7):

        def slope(t, x):
            t, x = jnp.full(1, t), jnp.asarray(x)[None]
            x_0, eps, _ = problems.posterior_mean(RectifiedFlow())(x, t)
            return np.asarray(eps - x_0)[0]

        theirs = solve_ivp(slope, (1, 0), Z[1], rtol=tolerance, atol=tolerance).nfev
        ours, _ = solved(DormandPrince(rtol=tolerance, atol=tolerance), RectifiedFlow(), 0.0, Z[1:2])
        assert int(ours.evaluations[0]) == pytest.approx(theirs, abs=6)


def test_trees_are_carried_and_time_may_rise(x64):
    """x' = x and y' = t, from 0 to 1 of one sample."""
    solver = DormandPrince(rtol=1e-9, atol=1e-9)
    start = {"x": jnp.ones((2, 3)), "y": jnp.zeros(2)}
    solution = jax.jit(lambda start: solver.solve(lambda x, t: {"x": x["x"], "y": t}, start, 0.0, 1.0))(start)
    np.testing.assert_allclose(solution.x["x"], np.e, rtol=1e-8)
    np.testing.assert_allclose(solution.x["y"], 0.5, rtol=1e-12)


def test_a_sample_that_has_not_arrived_says_so(x64):
    solution, _ = solved(DormandPrince(rtol=1e-12, atol=1e-12, max_steps=3), RectifiedFlow(), 0.0, Z)
    assert not solution.arrived.any() and (solution.t > 0).all() and (solution.evaluations == 2 + 18).all()


def test_in_float32_it_arrives_exactly_at_the_end():
    start = jnp.asarray(Z, jnp.float32)
    flow = RectifiedFlow()
    solution = jax.jit(lambda x: DormandPrince().sample(flow, problems.posterior_mean(flow), x))(start)
    assert solution.arrived.all() and (solution.t == 0).all() and solution.x.dtype == jnp.float32
    np.testing.assert_allclose(solution.x, problems.solution(RectifiedFlow(), Z, 0.0), atol=5e-4)


@pytest.mark.parametrize("wrong", [{"rtol": -1.0}, {"atol": 0.0}, {"max_steps": 0}])
def test_impossible_tolerances_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} of "):
        DormandPrince(**wrong)
