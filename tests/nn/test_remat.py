"""Laws of rematerialisation: it moves work, and changes no number."""

from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.remat import RematPolicy, rematerialise

POLICIES = get_args(RematPolicy)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.tanh(nn.Dense(4, name="linear")(x)), None


class Network(nn.Module):
    policy: RematPolicy

    @nn.compact
    def __call__(self, x):
        block = rematerialise(Block, self.policy)
        stack = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return jnp.sum(stack(name="blocks")(x)[0] ** 2)


X = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
KERNELS = np.random.default_rng(1).normal(size=(3, 4, 4)).astype(np.float32)
PARAMS = {"blocks": {"linear": {"kernel": KERNELS, "bias": np.ones((3, 4), np.float32)}}}


def gradient(policy: RematPolicy):
    return jax.grad(lambda params: Network(policy).apply({"params": params}, X))


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_changes_the_names_of_parameters(policy):
    params = jax.eval_shape(Network(policy).init, jax.random.key(0), X)["params"]
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)


def test_no_policy_changes_the_gradients():
    none, *others = jax.jit(lambda params: [gradient(policy)(params) for policy in POLICIES])(PARAMS)
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), other, none)


def test_dots_recomputes_activations_and_full_recomputes_linear_layers_too():
    programs = {policy: str(jax.make_jaxpr(gradient(policy))(PARAMS)) for policy in POLICIES}
    counts = {policy: (text.count("dot_general["), text.count("= tanh")) for policy, text in programs.items()}
    linear, tanh = counts["none"]
    assert counts["dots"] == (linear, tanh + 1)
    assert counts["full"] == (linear + 1, tanh + 1)
