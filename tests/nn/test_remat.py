"""Laws of rematerialisation: it moves work, and changes no number."""

from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.attention import attention
from genjax.nn.remat import RematPolicy, rematerialise

POLICIES = get_args(RematPolicy)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.tanh(nn.Dense(4, name="linear")(x))
        heads = x[None, :, None, :]  # (B=1, T, N=1, H)
        return x + attention(heads, heads, heads)[0, :, 0], None


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


def test_each_policy_recomputes_what_it_does_not_keep():
    programs = {policy: str(jax.make_jaxpr(gradient(policy))(PARAMS)) for policy in POLICIES}
    parts = ("dot_general[", "= tanh", "attention_forward[")
    counts = {policy: [text.count(part) for part in parts] for policy, text in programs.items()}
    again = {
        policy: [two - one for one, two in zip(counts["none"], counts[policy], strict=True)] for policy in POLICIES
    }
    assert again == {"none": [0, 0, 0], "dots": [0, 1, 1], "attention": [1, 1, 0], "full": [1, 1, 1]}


@pytest.mark.parametrize("scanned", [True, False])
def test_work_is_kept_from_being_merged_where_no_scan_does(scanned):
    block = rematerialise(Block, "full", scanned=scanned)()
    params = jax.tree.map(lambda leaf: leaf[0], PARAMS["blocks"])
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(block.apply({"params": params}, X)[0] ** 2)))
    assert ("optimization_barrier" in gradient.lower(params).as_text()) != scanned
