"""Laws of the gated perceptron."""

import jax
import numpy as np
from flax.linen import meta

from genjax.nn.gated_mlp import GatedMLP

X = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)


def test_it_is_the_equation_of_swiglu():
    mlp = GatedMLP(7, 4)
    output, variables = meta.unbox(mlp.init_with_output(jax.random.key(0), X))
    gate, up, down = (np.float64(variables["params"][name]["kernel"]) for name in ("gate", "up", "down"))
    z = X @ gate
    np.testing.assert_allclose(output, (z / (1 + np.exp(-z)) * (X @ up)) @ down, rtol=0, atol=1e-5)


def test_it_has_three_matrices_and_no_biases():
    shapes = meta.unbox(jax.eval_shape(GatedMLP(7, 4).init, jax.random.key(0), X))["params"]
    assert sorted(leaf.shape for leaf in jax.tree.leaves(shapes)) == [(5, 7), (5, 7), (7, 4)]
