"""Laws of mixed precision."""

import jax
import jax.numpy as jnp

from genjax.training.precision import POLICIES, cast


def test_only_floats_are_cast():
    tree = {"w": jnp.ones(2), "ids": jnp.arange(2)}
    assert {name: leaf.dtype for name, leaf in cast(tree, jnp.bfloat16).items()} == {
        "w": jnp.bfloat16,
        "ids": jnp.arange(2).dtype,
    }


def test_gradients_through_a_cast_keep_the_type_of_the_parameters():
    gradient = jax.grad(lambda w: (cast(w, jnp.bfloat16) ** 2).sum().astype(jnp.float32))(jnp.ones(3))
    assert gradient.dtype == jnp.float32


def test_every_policy_keeps_parameters_and_sums_in_float32():
    assert all(policy.param == policy.accumulate == jnp.float32 for policy in POLICIES.values())
