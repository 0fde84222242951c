"""Laws of the optimiser's schedule, weight decay and clipping."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.config.kinds import kinds
from genjax.errors import InputError
from genjax.training.optimizer import SGD, Adafactor, Adam, AdamW, Lion, Muon, Optimizer


def test_what_can_be_chosen_are_the_optimisers_alone():
    assert set(kinds(Optimizer).values()) == {Adafactor, Adam, AdamW, Lion, Muon, SGD}


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


PARAMS = {"dense": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones(3)}, "embed": {"embedding": jnp.ones((3, 3))}}
GRADIENT = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), PARAMS)


def first_step(config):
    optimizer = config.build(10)
    return optimizer.update(GRADIENT, optimizer.init(PARAMS), PARAMS)[0]


def assert_close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-5, atol=0)


PLAIN = {"learning_rate": 0.1, "warmup_steps": 0, "clip_norm": None}


def test_the_first_step_of_adam_and_of_lion_is_the_sign_of_the_gradient():
    signs = jax.tree.map(lambda g: -0.1 * jnp.sign(g), GRADIENT)
    for config in (Adam(**PLAIN, eps=1e-12), AdamW(**PLAIN, eps=1e-12), Lion(**PLAIN)):
        assert_close(first_step(config), signs)


def test_plain_descent_steps_along_the_gradient_and_momentum_adds_what_was():
    assert_close(first_step(SGD(**PLAIN)), jax.tree.map(lambda g: -0.1 * g, GRADIENT))
    optimizer = SGD(**PLAIN, momentum=0.5).build(10)
    _, state = optimizer.update(GRADIENT, optimizer.init(PARAMS), PARAMS)
    assert_close(optimizer.update(GRADIENT, state, PARAMS)[0], jax.tree.map(lambda g: -0.15 * g, GRADIENT))


@pytest.mark.slow
def test_muon_makes_every_matrix_of_a_stack_nearly_orthogonal_and_leaves_the_rest_to_adam():
    step = first_step(Muon(**PLAIN))
    for matrix in step["dense"]["kernel"]:
        singular = np.linalg.svd(matrix / -0.1, compute_uv=False)
        assert 0.5 < singular.min() <= singular.max() < 1.5  # Newton-Schulz of five steps ends in about this band
    nadam = optax.nadam(0.1)
    rest = nadam.update(GRADIENT, nadam.init(PARAMS), PARAMS)[0]
    assert_close([step["dense"]["bias"], step["embed"]], [rest["dense"]["bias"], rest["embed"]])


def test_adafactor_keeps_rows_and_columns_instead_of_a_moment_of_every_weight():
    params = {"kernel": jnp.ones((256, 128))}
    state = Adafactor(**PLAIN).build(10).init(params)
    kept = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert kept < 2 * (256 + 128)


@pytest.mark.parametrize("kind", [SGD, Adafactor, Adam, AdamW, Lion, Muon])
def test_every_optimiser_descends_a_bowl(kind):
    """|x|^2 from ones, 100 steps; and its learning rate is that of the schedule."""
    config = kind(learning_rate=0.02, warmup_steps=5, decay="cosine", clip_norm=None)
    optimizer, params = config.build(100), PARAMS

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(lambda x: 2 * x, params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(100):
        params, state = step(params, state)
    assert optax.tree.norm(params) < 0.7 * optax.tree.norm(PARAMS)
