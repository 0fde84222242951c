"""Laws of the layers that name their axes: Linen's numbers, and names that are told once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.linear import STACKED, Conv, Embedding, Linear, rows_dot_general, with_axes

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4)), jnp.float32)
TOKENS = jnp.arange(6).reshape(2, 3)
PAIRS = {
    "linear": (Linear(5), nn.Dense(5), X),
    "linear without a bias": (Linear(5, use_bias=False), nn.Dense(5, use_bias=False), X),
    "embedding": (Embedding(7, 5), nn.Embed(7, 5), TOKENS),
    "convolution": (Conv(5, (3,), strides=2), nn.Conv(5, (3,), strides=2), X),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_outputs_names_and_first_values_are_those_of_linen(pair):
    ours, linen, x = pair
    (y_ours, boxed), (y_linen, plain) = (layer.init_with_output(jax.random.key(1), x) for layer in (ours, linen))
    params = nn.meta.unbox(boxed)
    assert jax.tree.structure(params) == jax.tree.structure(plain)
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    np.testing.assert_array_equal(y_ours, y_linen)
    np.testing.assert_array_equal(ours.apply(params, x), y_linen)


def test_a_linear_layer_multiplies_matrices_forth_and_back():
    """Whatever axes of rows there are: no operand of the kernel's gradient is transposed on the way."""
    params = Linear(5).init(jax.random.key(0), X[None])

    def products(x, params):
        loss = jax.grad(lambda params, x: jnp.sum(Linear(5).apply(params, x) ** 2), argnums=(0, 1))
        text = jax.jit(loss).lower(nn.meta.unbox(params), x).as_text()
        return [line for line in text.splitlines() if "dot_general" in line]

    lines = products(X[None], params)
    assert len(lines) == 3  # out, and the gradients of kernel and x
    assert all("tensor<12x" in line and "x6x" not in line for line in lines), lines


def test_what_is_no_linear_layer_is_refused():
    with pytest.raises(ValueError, match="last axis of x by the first of a matrix"):
        rows_dot_general(X, jnp.ones((4, 5)), (((1,), (0,)), ((), ())))


def names(layer, x):
    params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda box: box.names, params, is_leaf=nn.meta.is_axis_metadata)


def test_a_bias_has_the_name_of_the_features():
    assert names(Linear(5), X) == {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
    assert names(Linear(5, ("heads", None)), X) == {"kernel": ("heads", None), "bias": (None,)}
    assert names(Embedding(7, 5), TOKENS) == {"embedding": ("vocab", "embed")}
    assert names(Conv(5, (3, 3)), X[None]) == {"kernel": (None, None, "embed", "mlp"), "bias": ("mlp",)}


class Stack(nn.Module):
    length: int = 3

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x):
                return Linear(4, ("mlp", "embed"), name="linear")(x), None

        options = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=self.length)
        return nn.scan(Block, metadata_params=STACKED, **options)(name="blocks")(x)[0]


def test_a_scan_adds_the_axis_of_its_layers():
    assert names(Stack(), X) == {
        "blocks": {"linear": {"kernel": ("layers", "mlp", "embed"), "bias": ("layers", "embed")}}
    }


def test_another_number_of_names_than_axes_is_refused():
    with pytest.raises(ValueError, match=r"a parameter of shape \(2, 3\) has 2 axes, and 1 names: \('embed',\)"):
        with_axes(nn.initializers.zeros, ("embed",))(jax.random.key(0), (2, 3))
