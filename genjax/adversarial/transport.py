"""Optimal transport between two finite sets of points: what a Wasserstein critic estimates, exactly.

With equal weights on N points x_i and on N points y_j, and costs C_ij = |x_i - y_j|^k, the cheapest plan is a
permutation, and its price is also the most that two potentials can earn (Kantorovich 1942; Peyré and Cuturi 2019,
propositions 2.1 and 2.4):

    primal   min over permutations s of   1/N sum_i C_i,s(i)
    dual     max over f, g of             1/N sum_i f_i + 1/N sum_j g_j      subject to  f_i + g_j <= C_ij

Adding eps KL(P | uniform) to the primal makes it smooth; its dual has a fixed point that two soft minima find in turn
(Sinkhorn; Cuturi 2013, and section 4.4 of the book for the log domain):

    f_i = -eps log 1/M sum_j exp((g_j - C_ij) / eps),      g_j = -eps log 1/N sum_i exp((f_i - C_ij) / eps)

`docs/duality.md` derives the dual that a critic solves. What is exact here runs on the host, in float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.errors import InputError

__all__ = [
    "Assignment",
    "Entropic",
    "Potentials",
    "assignment",
    "c_transform",
    "distances",
    "dual",
    "lower_bound",
    "sinkhorn",
    "sinkhorn_divergence",
    "sorted_wasserstein",
]


class Assignment(NamedTuple):
    """The cheapest permutation: x_i goes to y[partner[i]]; `cost` is the mean over i."""

    cost: float
    partner: Int[np.ndarray, " N"]


class Potentials(NamedTuple):
    """The dual optimum: f on the x_i, g on the y_j, and their mean earnings, the value."""

    value: float
    f: Float[np.ndarray, " N"]
    g: Float[np.ndarray, " M"]


class Entropic(NamedTuple):
    """The entropic optimum.

    `value` is <plan, C> + eps KL(plan | uniform), differentiable by the costs; `transport` is <plan, C> alone.
    """

    value: Float[Array, ""]
    transport: Float[Array, ""]
    f: Float[Array, " N"]
    g: Float[Array, " M"]
    plan: Float[Array, "N M"]


def distances(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"], *, power: float = 1.0
) -> Float[np.ndarray, "N M"]:
    """|x_i - y_j|^power, float64: power 1 makes transport costs W1, power 2 makes them W2^2.

    Raises InputError where the points do not live in one space.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(f"two sets of points are arrays (N, D) and (M, D), not of shapes {x.shape} and {y.shape}")
    return np.linalg.norm(x[:, None] - y[None], axis=-1) ** power


def assignment(costs: Float[np.ndarray, "N N"]) -> Assignment:
    """The primal optimum, exactly, by the Hungarian method: milliseconds for N = 512. InputError unless N x N."""
    # scipy, which scikit-learn brings, takes a moment to import: only those who transport wait for it.
    from scipy.optimize import linear_sum_assignment

    costs = np.asarray(costs, np.float64)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1]:
        raise InputError(f"an assignment needs as many points on either side, not costs of shape {costs.shape}")
    rows, partner = linear_sum_assignment(costs)
    return Assignment(float(costs[rows, partner].mean()), partner)


def dual(costs: Float[np.ndarray, "N M"]) -> Potentials:
    """The dual optimum by linear programming (HiGHS); of the many equal ones, that with mean g = 0.

    N M constraints of two variables each: a second for 64 x 64, much more beyond 200 x 200.
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, hstack, kron

    costs = np.asarray(costs, np.float64)
    n, m = costs.shape
    chosen = hstack([kron(eye_array(n), np.ones((m, 1))), kron(np.ones((n, 1)), eye_array(m))], format="csr")
    earnings = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    solved = linprog(-earnings, A_ub=chosen, b_ub=costs.ravel(), bounds=(None, None), method="highs")
    if not solved.success:
        raise RuntimeError(f"the linear program of {n} x {m} points was not solved: {solved.message}")
    f, g = solved.x[:n], solved.x[n:]
    return Potentials(float(earnings @ solved.x), f + g.mean(), g - g.mean())


def c_transform(costs: Float[np.ndarray, "N M"], g: Float[np.ndarray, " M"]) -> Float[np.ndarray, " N"]:
    """The most that f may be beside g: f_i = min_j C_ij - g_j.

    For costs that are distances of any points z to the y_j, f is a 1-Lipschitz function of z, for it is a minimum of
    such functions: it is how a potential known on finitely many points becomes a critic on the whole space.
    """
    return np.min(np.asarray(costs, np.float64) - g, axis=1)


def sorted_wasserstein(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], *, power: float = 1.0) -> float:
    """W_power^power of two equally large sets on the line: in order to in order is best for every power >= 1.

    mean |x_(i) - y_(i)|^power, for power 1 the area between the two distribution functions (Villani 2003, 2.18).
    """
    return float(np.mean(np.abs(np.sort(np.asarray(x, np.float64)) - np.sort(np.asarray(y, np.float64))) ** power))


def lower_bound(
    real_scores: Float[np.ndarray, " N"],
    fake_scores: Float[np.ndarray, " M"],
    real: Float[np.ndarray, "N D"],
    fake: Float[np.ndarray, "M D"],
) -> float:
    """What any critic proves about W1 of the two sets: its mean difference over its steepest slope between two points.

    (mean D(x) - mean D(y)) / max |D(a) - D(b)| / |a - b|, a and b over all N + M points. On these points D over that
    slope is 1-Lipschitz, whatever D is elsewhere, so by duality this is at most W1, and some critic reaches it.
    Points that coincide take no part in the slope. A constant critic proves 0.
    """
    points, scores = np.concatenate([real, fake]), np.float64(np.concatenate([real_scores, fake_scores]))
    between = distances(points, points)
    apart = between > 0
    slope = np.max(np.abs(scores[:, None] - scores[None])[apart] / between[apart], initial=0.0)
    gap = np.mean(np.float64(real_scores)) - np.mean(np.float64(fake_scores))
    return float(gap / slope) if slope > 0 else 0.0


def sinkhorn(
    costs: Float[Array, "N M"], epsilon: float | Float[Array, ""], *, tolerance: float = 1e-6, iterations: int = 10_000
) -> Entropic:
    """The entropic optimum between uniform weights, in the log domain.

    Epsilon falls by a tenth per iteration from the largest cost to `epsilon` (in units of cost), then iterations go on
    until the plan's row sums are off by less than `tolerance` in all (columns fit exactly), or `iterations` are done.
    `value` is at least the exact cost and at most epsilon log max(N, M) above it, and falls to it with epsilon. Its
    gradient by the costs is the plan (by the envelope theorem: no derivative runs through the iterations).
    """
    n, m = costs.shape
    fixed = jax.lax.stop_gradient(costs)
    start = jnp.max(jnp.abs(fixed))

    def soft_g(f: Float[Array, " N"], eps: Float[Array, ""]) -> Float[Array, " M"]:
        return -eps * (jax.nn.logsumexp((f[:, None] - fixed) / eps, axis=0) - jnp.log(n))

    def soft_f(g: Float[Array, " M"], eps: Float[Array, ""]) -> Float[Array, " N"]:
        return -eps * (jax.nn.logsumexp((g[None] - fixed) / eps, axis=1) - jnp.log(m))

    def unfinished(state: tuple) -> Array:
        step, eps, _, _, off = state
        return (step < iterations) & ((eps > epsilon) | (off > tolerance))

    def iterate(state: tuple) -> tuple:
        step, eps, f, g, _ = state
        eps = jnp.maximum(0.9 * eps, epsilon)
        following = soft_f(g, eps)
        # Row i of the plan of (f, g) sums to exp((f_i - following_i) / eps) / N.
        off = jnp.abs(jnp.expm1((f - following) / eps)).mean()
        return step + 1, eps, following, soft_g(following, eps), off

    zero = jnp.zeros((), fixed.dtype)
    state = (0, jnp.maximum(start, epsilon), jnp.zeros(n, fixed.dtype), jnp.zeros(m, fixed.dtype), zero + jnp.inf)
    _, _, f, g, _ = jax.lax.while_loop(unfinished, iterate, state)
    plan = jnp.exp((f[:, None] + g[None] - fixed) / epsilon) / (n * m)
    # At the optimum the value is the dual's, mean f + mean g; its derivative by the costs is the plan.
    value = f.mean() + g.mean() + jnp.sum(plan * (costs - fixed))
    return Entropic(value, jnp.sum(plan * costs), f, g, plan)


def sinkhorn_divergence(
    x: Float[Array, "N D"],
    y: Float[Array, "M D"],
    epsilon: float | Float[Array, ""],
    *,
    power: float = 1.0,
    tolerance: float = 1e-6,
) -> Float[Array, ""]:
    """S(x, y) = V(x, y) - V(x, x) / 2 - V(y, y) / 2 of entropic values V: 0 for equal sets, and never below.

    (Genevay et al. 2018; Feydy et al. 2019, theorem 1). Differentiable by the points, except where two of them meet.
    """

    def value(a: Float[Array, "N D"], b: Float[Array, "M D"]) -> Float[Array, ""]:
        squares = jnp.square(a[:, None] - b[None]).sum(axis=-1)
        apart = squares > 0
        costs = jnp.where(apart, jnp.where(apart, squares, 1) ** (power / 2), 0)
        return sinkhorn(costs, epsilon, tolerance=tolerance).value

    return value(x, y) - value(x, x) / 2 - value(y, y) / 2
