"""Activations by name, against their definitions in float64."""

import math

import jax
import numpy as np
import pytest

from genjax.nn.activations import activation

X = np.linspace(-6, 6, 97)
DEFINITIONS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_it_is_its_definition(name):
    with jax.enable_x64(True):
        found = activation(name)(X)
    np.testing.assert_allclose(found, [DEFINITIONS[name](x) for x in X], rtol=0, atol=1e-12)
