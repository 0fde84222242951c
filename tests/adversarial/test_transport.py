"""Laws of transport: primal equals dual, the line is sorted, entropy vanishes, and no critic proves too much."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.adversarial.transport import (
    assignment,
    c_transform,
    distances,
    dual,
    lower_bound,
    sinkhorn,
    sinkhorn_divergence,
    sorted_wasserstein,
)
from genjax.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 2))
Y = RNG.normal(size=(24, 2)) * [2, 0.5] + [1, 0]
COSTS = distances(X, Y)

both_powers = pytest.mark.parametrize("power", [1, 2])


@both_powers
def test_the_assignment_is_the_cheapest_of_all_permutations(power):
    costs = distances(X[:6], Y[:6], power=power)
    best = min(np.mean([costs[i, j] for i, j in enumerate(p)]) for p in itertools.permutations(range(6)))
    found = assignment(costs)
    np.testing.assert_allclose(found.cost, best, rtol=1e-14)
    assert sorted(found.partner) == list(range(6))


@both_powers
def test_the_dual_optimum_is_the_primal_one_and_complementary_to_it(power):
    costs = distances(X, Y, power=power)
    primal, (value, f, g) = assignment(costs), dual(costs)
    np.testing.assert_allclose(value, primal.cost, atol=1e-10)
    assert (f[:, None] + g[None] <= costs + 1e-9).all()
    np.testing.assert_allclose(f + g[primal.partner], costs[np.arange(24), primal.partner], atol=1e-9)
    np.testing.assert_allclose(g.mean(), 0, atol=1e-12)


def test_the_dual_takes_sets_of_different_sizes():
    """Doubling every x leaves the distribution as it is."""
    twice = assignment(distances(np.repeat(X[:12], 2, axis=0), Y)).cost
    np.testing.assert_allclose(dual(distances(X[:12], Y)).value, twice, atol=1e-10)


@both_powers
def test_on_the_line_sorting_is_the_best_assignment(power):
    x, y = X[:, :1], Y[:, :1]
    best = assignment(distances(x, y, power=power)).cost
    np.testing.assert_allclose(sorted_wasserstein(x[:, 0], y[:, 0], power=power), best, rtol=1e-13)


@both_powers
def test_the_distance_of_a_shifted_set_is_the_shift(power):
    np.testing.assert_allclose(assignment(distances(X, X + [3, 4], power=power)).cost, 5**power, rtol=1e-13)


def test_parallel_segments_are_their_distance_apart_where_jensen_shannon_sees_none():
    """WGAN's example 1: W1 = |theta|, while the supports are disjoint for every theta but 0."""
    z = np.linspace(0, 1, 30)
    for theta in (0.0, 0.1, -2.0):
        line, moved = np.stack([np.zeros(30), z], 1), np.stack([np.full(30, theta), z], 1)
        np.testing.assert_allclose(assignment(distances(line, moved)).cost, abs(theta), atol=1e-13)


def test_the_c_transform_of_an_optimal_potential_is_a_1_lipschitz_critic_that_proves_w1():
    value, _, g = dual(COSTS)
    points = np.concatenate([X, Y, RNG.normal(size=(50, 2)) * 3])
    critic = c_transform(distances(points, Y), g)
    between = distances(points, points)
    assert (np.abs(critic[:, None] - critic[None]) <= between + 1e-12).all()
    np.testing.assert_allclose(critic[:24].mean() - critic[24:48].mean(), value, atol=1e-10)
    np.testing.assert_allclose(lower_bound(critic[:24], critic[24:48], X, Y), value, atol=1e-9)


def test_no_critic_proves_more_than_w1_whatever_it_says():
    exact = assignment(COSTS).cost
    for scale in (1e-3, 1, 1e3):
        for scores in scale * RNG.normal(size=(100, 48)):
            assert lower_bound(scores[:24], scores[24:], X, Y) <= exact + 1e-12
    for w in RNG.normal(size=(50, 2)):
        proved = lower_bound(X @ w, Y @ w, X, Y)
        assert proved <= exact
        np.testing.assert_allclose(lower_bound(7 * X @ w + 2, 7 * Y @ w + 2, X, Y), proved, rtol=1e-9)
    assert lower_bound(np.ones(24), np.ones(24), X, Y) == 0


@pytest.fixture(scope="module")
def solve():
    return jax.jit(lambda costs, epsilon: sinkhorn(costs, epsilon, tolerance=1e-9))


@both_powers
def test_sinkhorn_falls_to_the_exact_cost_with_epsilon_and_never_below(x64, solve, power):
    costs = distances(X, Y, power=power)
    exact = assignment(costs).cost
    solved = {epsilon: solve(costs, epsilon) for epsilon in (1.0, 0.1, 0.01)}
    for epsilon, (value, transport, *_) in solved.items():
        assert exact - 1e-9 <= transport <= value <= exact + epsilon * np.log(24)
    assert solved[1.0].transport > solved[0.1].transport > solved[0.01].transport
    np.testing.assert_allclose(solved[0.01].transport, exact, rtol=2e-3)


def test_sinkhorns_plan_has_both_marginals_and_makes_up_its_value(x64, solve):
    value, transport, f, g, plan = solve(COSTS, 0.1)
    np.testing.assert_allclose(plan.sum(axis=0), 1 / 24, rtol=1e-9)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / 24, rtol=1e-7)
    np.testing.assert_allclose(transport, np.sum(plan * COSTS), rtol=1e-12)
    divergence = np.sum(plan * np.log(plan * 24 * 24))
    np.testing.assert_allclose(value, transport + 0.1 * divergence, rtol=1e-8)
    np.testing.assert_allclose(value, f.mean() + g.mean(), rtol=1e-12)
    assert assignment(COSTS).cost <= transport <= value


def test_sinkhorns_gradient_by_the_costs_is_its_plan(x64, solve):
    gradient = jax.grad(lambda costs: solve(costs, 0.3).value)(jnp.asarray(COSTS))
    np.testing.assert_allclose(gradient, solve(COSTS, 0.3).plan, rtol=1e-12)
    direction = RNG.normal(size=COSTS.shape)
    ahead, behind = (solve(COSTS + h * direction, 0.3).value for h in (1e-4, -1e-4))
    np.testing.assert_allclose(np.sum(gradient * direction), (ahead - behind) / 2e-4, rtol=1e-5)


def test_sinkhorn_in_single_precision_stays_near(solve):
    single = jax.jit(sinkhorn)(jnp.asarray(COSTS, jnp.float32), 0.02)
    assert single.value.dtype == jnp.float32
    np.testing.assert_allclose(single.plan.sum(axis=1), 1 / 24, rtol=1e-3)
    exact = assignment(COSTS).cost
    assert 0 <= single.value - exact <= 0.02 * np.log(24)


@pytest.mark.slow
@both_powers
def test_the_sinkhorn_divergence_is_zero_for_equal_sets_positive_else_and_leads_one_set_to_the_other(x64, power):
    divergence = jax.jit(lambda x, y: sinkhorn_divergence(x, y, 0.3, power=power, tolerance=1e-9))
    np.testing.assert_allclose(divergence(X, X[::-1]), 0, atol=1e-8)
    start = divergence(X, Y)
    assert start > 0.05
    step = -24 * jax.grad(divergence)(jnp.asarray(X), Y)
    assert np.isfinite(step).all()
    assert divergence(X + 0.1 * step, Y) < start


def test_bad_shapes_are_refused_in_a_sentence(unchecked):
    with pytest.raises(InputError, match=r"\(N, D\) and \(M, D\)"):
        distances(X, Y[:, :1])
    with pytest.raises(InputError, match="as many points"):
        assignment(COSTS[:5])
