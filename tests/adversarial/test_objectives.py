"""Laws of the games: what the best critic between two known distributions is worth, and how losses behave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.adversarial.objectives import (
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Relativistic,
    Wasserstein,
)

OBJECTIVES = [Minimax(), NonSaturating(), Hinge(), LeastSquares(), Wasserstein(), Relativistic()]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)

P = np.array([0.1, 0.2, 0.3, 0.4])
Q = np.array([0.25, 0.35, 0.05, 0.35])
"""Two distributions over four points: expectations are sums, without sampling error."""


def kullback_leibler(p, q):
    return np.sum(p * np.log(p / q))


def expected_critic_loss(objective, scores):
    """E of a loss that is a sum of a real and a generated term, exactly."""
    zero = jnp.zeros_like(scores)
    anywhere = objective.critic(zero, zero)
    return P @ (objective.critic(scores, zero) - anywhere) + Q @ objective.critic(zero, scores)


def assert_no_critic_does_better(objective, scores):
    gradient = jax.grad(lambda s: expected_critic_loss(objective, s))(scores)
    np.testing.assert_allclose(gradient, 0, atol=1e-15)
    best = expected_critic_loss(objective, scores)
    for other in np.random.default_rng(0).normal(size=(50, 4)):
        assert expected_critic_loss(objective, scores + other) > best


def test_at_the_best_critic_the_minimax_value_is_twice_jensen_shannon_minus_log_4(x64):
    middle = (P + Q) / 2
    twice_js = kullback_leibler(P, middle) + kullback_leibler(Q, middle)
    best = jnp.log(P / Q)  # sigmoid of it is p / (p + q)
    assert_no_critic_does_better(Minimax(), best)
    np.testing.assert_allclose(-expected_critic_loss(Minimax(), best), twice_js - np.log(4), rtol=1e-14)


@pytest.mark.parametrize("shift, value", [(0.5, -1.32567), (1, -1.16345), (2, -0.71263), (4, -0.12085)])
def test_the_minimax_value_of_two_shifted_gaussians_is_the_known_one(x64, shift, value):
    x = np.linspace(-12, 16, 20_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    moved = np.exp(-((x - shift) ** 2) / 2) / np.sqrt(2 * np.pi)
    best = jnp.asarray(x * -shift + shift**2 / 2)  # log density - log moved
    zero = jnp.zeros_like(best)
    losses = density * (Minimax().critic(best, zero) - np.log(2)) + moved * (Minimax().critic(zero, best) - np.log(2))
    np.testing.assert_allclose(-np.sum(losses) * (x[1] - x[0]), value, atol=5e-6)


def test_at_the_best_critic_the_hinge_loss_is_two_less_twice_the_total_variation(x64):
    best = jnp.sign(P - Q)
    total_variation = np.abs(P - Q).sum() / 2
    loss = expected_critic_loss(Hinge(), best)
    np.testing.assert_allclose(loss, 2 - 2 * total_variation, rtol=1e-14)
    for other in np.random.default_rng(0).normal(size=(50, 4)):
        assert expected_critic_loss(Hinge(), best + other) >= loss


def test_hinge_losses_are_the_known_ones_inside_at_and_beyond_the_margin():
    losses = Hinge().critic(jnp.array([0.0, 1.0, 3.0, -2.0]), jnp.array([0.0, -1.0, -3.0, 0.5]))
    np.testing.assert_array_equal(losses, [2, 0, 0, 4.5])
    np.testing.assert_array_equal(Hinge().generator(jnp.zeros(2), jnp.array([2.0, -3.0])), [-2, 3])


@pytest.mark.parametrize("objective", [LeastSquares(), LeastSquares(a=-1, b=1, c=0)])
def test_the_best_least_squares_critic_is_the_posterior_mean_of_its_targets(x64, objective):
    best = jnp.asarray((objective.b * P + objective.a * Q) / (P + Q))
    assert_no_critic_does_better(objective, best)
    value = (objective.b - objective.a) ** 2 / 2 * np.sum(P * Q / (P + Q))
    np.testing.assert_allclose(expected_critic_loss(objective, best), value, rtol=1e-14)


def test_least_squares_generator_lowers_pearsons_chi_squared(x64):
    objective = LeastSquares(a=-1, b=1, c=0)
    losses = objective.generator(jnp.zeros(4), jnp.asarray((P - Q) / (P + Q)))
    # LSGAN's proof adds the same square under p, which a generator cannot change.
    np.testing.assert_allclose(2 * (P + Q) @ losses, np.sum((P + Q - 2 * Q) ** 2 / (P + Q)), rtol=1e-14)


def test_the_wasserstein_losses_are_linear_and_the_critics_is_minus_the_gap():
    real, fake, more = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    w = Wasserstein()
    np.testing.assert_array_equal(w.critic(real, fake), -(real - fake))
    np.testing.assert_allclose(w.critic(2 * real + more, 2 * fake), 2 * w.critic(real, fake) - more, atol=1e-6)
    np.testing.assert_array_equal(w.generator(real, fake), -fake)


def test_both_generators_of_the_classic_game_push_one_way_by_odds_of_the_critic(x64):
    """With d = sigmoid(D): d/dD log(1 - d) = -d and d/dD (-log d) = -(1 - d), so their ratio is exp(-D)."""
    scores = jnp.linspace(-8.0, 8.0, 33)
    saturating, other = (
        jax.grad(lambda s, o=objective: o.generator(s, s).sum())(scores) for objective in (Minimax(), NonSaturating())
    )
    np.testing.assert_allclose(saturating, -jax.nn.sigmoid(scores), rtol=1e-12)
    np.testing.assert_allclose(other, saturating * jnp.exp(-scores), rtol=1e-12)


def test_minimax_is_zero_sum_but_for_the_real_term():
    real, fake = jnp.array([0.3, -2.0]), jnp.array([1.5, -0.5])
    total = Minimax().critic(real, fake) + Minimax().generator(real, fake)
    np.testing.assert_allclose(total, np.log1p(np.exp(-real)), rtol=1e-6)


def test_the_relativistic_game_is_symmetric_between_its_players_and_blind_to_a_shift():
    real, fake = np.random.default_rng(0).normal(size=(2, 7)).astype(np.float32)
    game = Relativistic()
    np.testing.assert_array_equal(game.critic(real, fake), game.generator(fake, real))
    np.testing.assert_allclose(game.critic(real + 4, fake + 4), game.critic(real, fake), atol=1e-6)
    # softplus(-d) - softplus(d) = -d: what one wins above the other is the difference of scores
    np.testing.assert_allclose(game.critic(real, fake) - game.generator(real, fake), fake - real, atol=1e-6)


@every_objective
def test_losses_and_gradients_stay_finite_at_huge_scores(objective):
    scores = jnp.array([-1e4, -100.0, 0.0, 100.0, 1e4])
    for loss in (objective.critic, objective.generator):
        value, gradients = jax.value_and_grad(lambda r, f, loss=loss: loss(r, f).sum(), argnums=(0, 1))(scores, -scores)
        assert np.isfinite(value) and np.isfinite(gradients).all()


@every_objective
def test_the_critic_wants_real_scores_high_and_generated_ones_low_and_the_generator_the_reverse(objective):
    scores = jnp.array([0.1, 0.3, 0.6, 0.9])  # inside every margin, between all labels
    real, fake = jax.grad(lambda r, f: objective.critic(r, f).sum(), argnums=(0, 1))(scores, scores)
    assert (real < 0).all() and (fake > 0).all()
    assert (jax.grad(lambda f: objective.generator(scores, f).sum())(scores) < 0).all()


@every_objective
def test_a_row_of_patches_loses_the_mean_over_its_patches_in_float32(objective):
    real, fake = np.random.default_rng(0).normal(size=(2, 3, 2, 2)).astype(jnp.bfloat16)
    for loss in (objective.critic, objective.generator):
        rows = loss(jnp.asarray(real), jnp.asarray(fake))
        assert rows.shape == (3,) and rows.dtype == jnp.float32
        flat = loss(jnp.asarray(real).reshape(-1), jnp.asarray(fake).reshape(-1))
        np.testing.assert_allclose(rows, flat.reshape(3, 4).mean(axis=1), rtol=1e-5)
