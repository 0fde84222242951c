"""Laws of constraints: projections project, and only what must change changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.adversarial.constraints import SpectralNorm, Unconstrained, WeightClipping, projected_updates
from genjax.errors import InputError

PARAMS = {"fc": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32), "bias": jnp.ones(3)}}
CONSTRAINTS = [Unconstrained(), WeightClipping(0.5), SpectralNorm()]
every_constraint = pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda c: type(c).__name__)


def test_clipping_moves_to_the_nearest_allowed_parameters():
    projected = WeightClipping(0.5).project(PARAMS)
    np.testing.assert_array_equal(projected["fc"]["kernel"], np.clip(PARAMS["fc"]["kernel"], -0.5, 0.5))
    np.testing.assert_array_equal(projected["fc"]["bias"], 0.5)


@every_constraint
def test_projecting_twice_is_projecting_once(constraint):
    once = constraint.project(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, constraint.project(once), once)


@every_constraint
def test_the_state_keeps_its_shape_and_what_the_critic_runs_with_has_the_tree_of_the_parameters(constraint):
    state = constraint.initial(PARAMS, jax.random.key(0))
    following = constraint.advance(PARAMS, state)
    assert jax.tree.map(jnp.shape, following) == jax.tree.map(jnp.shape, state)
    applied = constraint.applied(PARAMS, state)
    assert jax.tree.map(jnp.shape, applied) == jax.tree.map(jnp.shape, PARAMS)


def test_only_the_spectral_norm_runs_the_critic_with_other_parameters_than_those_learnt():
    for constraint in CONSTRAINTS:
        applied = constraint.applied(PARAMS, constraint.initial(PARAMS, jax.random.key(0)))
        same = bool((applied["fc"]["kernel"] == PARAMS["fc"]["kernel"]).all())
        assert same == (not isinstance(constraint, SpectralNorm))


@every_constraint
def test_after_an_update_through_the_chain_the_parameters_are_projected(constraint):
    chain = optax.chain(optax.sgd(0.3), projected_updates(constraint.project))
    gradients = jax.tree.map(lambda p: jnp.cos(7 * p), PARAMS)
    start = constraint.project(PARAMS)
    updates, _ = chain.update(gradients, chain.init(start), start)
    expected = constraint.project(jax.tree.map(lambda p, g: p - 0.3 * g, start, gradients))
    moved = optax.apply_updates(start, updates)
    jax.tree.map(lambda m, e: np.testing.assert_allclose(m, e, atol=1e-7), moved, expected)


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_limit_of_clipping_is_positive(limit):
    with pytest.raises(InputError, match="above 0"):
        WeightClipping(limit)
