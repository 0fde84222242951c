"""Laws of the optimiser's schedule, weight decay and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.errors import InputError
from genjax.training.optimizer import AdamW


def test_the_warm_up_is_linear_from_one_step_up_to_the_peak():
    schedule = AdamW(learning_rate=1.0, warmup_steps=10).schedule(100)
    np.testing.assert_allclose([schedule(i) for i in range(10)], (np.arange(10) + 1) / 10, rtol=1e-6)
    assert schedule(50) == pytest.approx(1.0)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_decay_falls_to_its_final_fraction(decay):
    schedule = AdamW(learning_rate=2.0, warmup_steps=10, decay=decay, final_fraction=0.1).schedule(110)
    rates = np.array([schedule(i) for i in range(9, 111)])
    assert rates[0] == pytest.approx(2.0)
    assert (np.diff(rates) <= 1e-7).all()
    assert rates[51] == pytest.approx((2.0 + 0.2) / 2, rel=1e-5)  # half-way, both are the mean of both ends
    assert rates[-1] == pytest.approx(0.2, rel=1e-5)


def test_only_matrices_decay():
    config = AdamW(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=None)
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    optimizer = config.build(10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    steps, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(steps["dense"]["kernel"], -0.1 * 0.5)
    assert not steps["dense"]["bias"].any()
    assert not steps["norm"]["scale"].any()


def test_clipping_makes_the_step_that_of_the_scaled_gradient():
    gradient = {"kernel": jnp.array([3.0, 4.0])}
    params = {"kernel": jnp.zeros(2)}
    clipped, free = (AdamW(warmup_steps=0, clip_norm=norm, eps=1.0).build(10) for norm in (1.0, None))
    by_clipping, _ = clipped.update(gradient, clipped.init(params), params)
    by_hand, _ = free.update(jax.tree.map(lambda g: g / optax.tree.norm(gradient), gradient), free.init(params), params)
    np.testing.assert_allclose(by_clipping["kernel"], by_hand["kernel"], rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"clip_norm": -1.0}, {"warmup_steps": -1}])
def test_impossible_values_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        AdamW(**wrong)
