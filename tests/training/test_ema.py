"""Laws of the average of the parameters."""

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.training.ema import ema_decay, update_ema


def test_the_warm_up_rises_to_the_longest_decay():
    decays = np.array([ema_decay(jnp.asarray(n), 0.99) for n in [0, 1, 10, 100, 881, 10_000]])
    assert decays[0] == pytest.approx(1 / 10)
    assert (np.diff(decays) >= 0).all()
    assert decays[-1] == pytest.approx(0.99)


def test_the_average_of_a_constant_is_that_constant():
    tree = {"w": jnp.arange(3.0)}
    np.testing.assert_array_equal(update_ema(tree, tree, jnp.asarray(0.9))["w"], tree["w"])


def test_the_average_is_the_geometrically_weighted_sum():
    decay, values = 0.8, np.random.default_rng(0).normal(size=6)
    average = jnp.asarray(0.0)
    for value in values:
        average = update_ema(average, jnp.asarray(value), jnp.asarray(decay))
    weights = (1 - decay) * decay ** np.arange(len(values))[::-1]
    assert float(average) == pytest.approx(float(weights @ values), rel=1e-5)
