"""Laws of the two-layer perceptron."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from genjax.nn.mlp import MLP


def test_it_equals_linear_gelu_linear_with_the_tanh_form():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    mlp = MLP(hidden=8, out=5)
    params = meta.unbox(jax.jit(mlp.init)(jax.random.key(0), x))["params"]
    hidden = np.float64(x) @ np.float64(params["fc1"]["kernel"])
    gelu = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    np.testing.assert_allclose(mlp.apply({"params": params}, x), gelu @ np.float64(params["fc2"]["kernel"]), atol=1e-6)


def test_the_activation_may_be_another():
    x = jnp.linspace(-2, 2, 4)[None]
    identity = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    y = MLP(hidden=4, out=4, activation=nn.silu).apply({"params": {"fc1": identity, "fc2": identity}}, x)
    np.testing.assert_allclose(y, x / (1 + np.exp(-x)), rtol=1e-6)


def test_it_starts_with_xavier_uniform_weights_and_zero_biases():
    params = meta.unbox(jax.jit(MLP(hidden=64, out=32).init)(jax.random.key(0), jnp.zeros((1, 32))))["params"]
    for layer in params.values():
        bound = np.sqrt(6 / 96)
        assert 0.98 * bound < np.abs(layer["kernel"]).max() <= bound
        np.testing.assert_allclose(np.std(layer["kernel"]), bound / np.sqrt(3), rtol=0.05)
        np.testing.assert_array_equal(layer["bias"], 0)


def test_the_second_layer_may_start_otherwise():
    mlp = MLP(hidden=8, out=5, out_init=nn.initializers.zeros)
    params = meta.unbox(jax.jit(mlp.init)(jax.random.key(0), jnp.zeros((1, 4))))["params"]
    assert params["fc1"]["kernel"].any() and not params["fc2"]["kernel"].any()
