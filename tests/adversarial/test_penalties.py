"""Laws of penalties: exact for a linear critic, defined where it is flat, and row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.adversarial.penalties import R1, R1R2, R2, GradientPenalty, LipschitzPenalty, NoPenalty
from genjax.errors import InputError

PENALTIES = [NoPenalty(), GradientPenalty(), LipschitzPenalty(), R1(), R2(), R1R2()]
every_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)

REAL, FAKE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 2, 3)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)), jnp.float32)
NORM = np.linalg.norm(np.float64(W))
KEYS = jax.random.split(jax.random.key(0), 5)


def linear(x, w=W):
    return jnp.einsum("bij,ij->b", x, w)


def quadratic(x):
    """Its gradient is x."""
    return jnp.square(x).sum(axis=(1, 2)) / 2


def squares(x):
    return np.square(x).sum(axis=(1, 2))


@pytest.mark.parametrize("weight, target", [(10.0, 1.0), (0.1, 0.5)])
def test_the_gradient_penalty_of_a_linear_critic_is_that_of_its_norm(weight, target):
    paid = GradientPenalty(weight, target)(linear, REAL, FAKE, KEYS)
    np.testing.assert_allclose(paid, np.full(5, weight * (NORM - target) ** 2), rtol=1e-5)


def test_the_lipschitz_penalty_of_a_linear_critic_is_that_of_its_excess_over_1_and_nothing_below():
    for scale, expected in ((1.0, 3.0 * (NORM - 1) ** 2), (0.9 / NORM, 0.0)):
        paid = LipschitzPenalty(3.0)(lambda x, w=scale * W: linear(x, w), REAL, FAKE, KEYS)
        np.testing.assert_allclose(paid, np.full(5, expected), rtol=1e-5)


@pytest.mark.parametrize("penalty, times", [(R1(1.0), 1), (R2(1.0), 1), (R1R2(1.0), 2), (R1(5.0), 5), (NoPenalty(), 0)])
def test_r1_and_r2_of_a_linear_critic_are_the_weight_times_its_squared_norm(penalty, times):
    np.testing.assert_allclose(penalty(linear, REAL, FAKE, KEYS), np.full(5, times * NORM**2), rtol=1e-6)


def test_r1_looks_at_real_data_and_r2_at_generated_data():
    np.testing.assert_allclose(R1(1.0)(quadratic, REAL, FAKE, KEYS), squares(REAL), rtol=1e-6)
    np.testing.assert_allclose(R2(1.0)(quadratic, REAL, FAKE, KEYS), squares(FAKE), rtol=1e-6)
    np.testing.assert_allclose(R1R2(1.0)(quadratic, REAL, FAKE, KEYS), squares(REAL) + squares(FAKE), rtol=1e-6)


def test_the_gradient_penalty_looks_between_with_one_uniform_share_per_row():
    keys = jax.random.split(jax.random.key(1), 1000)
    ends = jnp.zeros((1000, 2, 3)), jnp.ones((1000, 2, 3))
    paid = GradientPenalty(weight=1.0, target=0.0)(quadratic, *ends, keys)  # 6 (1 - u)^2
    shares = np.sort(np.sqrt(paid / 6))
    # Kolmogorov and Smirnov: exceeded by chance with probability 3e-4
    assert np.abs(shares - (np.arange(1000) + 0.5) / 1000).max() < 2.1 / np.sqrt(1000)
    assert shares.min() >= 0 and shares.max() <= 1


def test_at_a_flat_critic_the_gradient_penalty_and_its_derivatives_are_finite():
    def paid(w):
        return GradientPenalty()(lambda x: linear(jax.nn.relu(x), w), REAL, FAKE, KEYS).sum()

    flat = jnp.zeros_like(W)
    value, gradient = jax.jit(jax.value_and_grad(paid))(flat)
    assert value == 5 * 10
    np.testing.assert_array_equal(gradient, 0)
    curvature = jax.jit(lambda w: jax.jvp(jax.grad(paid), (w,), (jnp.ones_like(w),))[1])(flat)
    assert np.isfinite(curvature).all()
    dead = GradientPenalty()(lambda x: linear(jax.nn.relu(x - 100)), REAL, FAKE, KEYS)
    np.testing.assert_array_equal(dead, 10)


def test_the_gradient_penaltys_own_gradient_is_that_of_the_formula():
    """d/dw 10 (|w| - 1)^2 = 20 (|w| - 1) w / |w|, also where |w| is tiny."""
    slope = jax.jit(jax.grad(lambda w: GradientPenalty()(lambda x: linear(x, w), REAL, FAKE, KEYS).mean()))
    for w in (W, 1e-12 * W):
        gradient = slope(w)
        norm = np.linalg.norm(np.float64(w))
        np.testing.assert_allclose(gradient, 20 * (norm - 1) * np.float64(w) / norm, rtol=1e-4)


@every_penalty
def test_what_a_row_pays_does_not_depend_on_the_other_rows(penalty):
    def critic(x):
        return jnp.tanh(linear(x)) + quadratic(x)

    pay = jax.jit(lambda *rows: penalty(critic, *rows))
    together = pay(REAL, FAKE, KEYS)
    assert together.shape == (5,)
    alone = [pay(REAL[i : i + 1], FAKE[i : i + 1], KEYS[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(together, np.array(alone), rtol=1e-5)


@every_penalty
def test_a_critic_of_patches_pays_for_the_slope_of_their_mean(penalty):
    def patches(x):
        return x * W  # (B, 2, 3): six patches

    paid = penalty(patches, REAL, FAKE, KEYS)
    np.testing.assert_allclose(paid, penalty(lambda x: linear(x) / 6, REAL, FAKE, KEYS), rtol=1e-5)


@pytest.mark.parametrize("kind", [GradientPenalty, LipschitzPenalty, R1, R2, R1R2])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(kind, weight):
    with pytest.raises(InputError, match="^weight is a price, 0 or more"):
        kind(weight)


def test_a_slope_below_0_is_refused():
    with pytest.raises(InputError, match="^target is a slope, 0 or more, not -1"):
        GradientPenalty(1.0, -1)
