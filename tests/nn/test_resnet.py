"""Laws of residual blocks without normalisation: the identity at first, even in scale, and exact resampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.linen import meta

from genjax.errors import InputError
from genjax.nn.resnet import LEAK, GroupedConv, InvertedResidual, halvings, he_normal, resized

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 8)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return meta.unbox(jax.jit(InvertedResidual(blocks=16, group_size=4).init)(jax.random.key(0), X))["params"]


def test_a_block_begins_as_the_identity(params):
    np.testing.assert_array_equal(InvertedResidual(blocks=16, group_size=4).apply({"params": params}, X), X)


def test_a_block_is_widened_mixed_in_groups_and_narrowed(params):
    assert jax.tree.map(jnp.shape, {name: layer["kernel"] for name, layer in params.items()}) == {
        "widen": (1, 1, 8, 16),
        "mix": (3, 3, 4, 16),
        "narrow": (1, 1, 16, 8),
    }


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_grouped_convolution_is_linens_and_so_are_its_derivatives(groups):
    """Values, and the gradient of a squared slope, as a penalty takes it."""
    ours, linens = GroupedConv(groups, kernel_init=he_normal()), nn.Conv(8, (3, 3), feature_group_count=groups)
    params = meta.unbox(ours.init(jax.random.key(0), X))["params"] | {"bias": jnp.linspace(-1, 1, 8)}
    shapes = jax.eval_shape(linens.init, jax.random.key(0), X)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    def values_and_gradients(model):
        def penalty(params):
            slopes = jax.grad(lambda x: jnp.tanh(model.apply({"params": params}, x)).sum())(X)
            return jnp.square(slopes).sum()

        return jax.jit(lambda params: (model.apply({"params": params}, X), jax.grad(penalty)(params)))(params)

    here, there = values_and_gradients(ours), values_and_gradients(linens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), here, there)


def test_a_block_of_sixteen_starts_with_half_of_hes_scale(params):
    """16^(-1/4) = 1/2; fan-in 8 and 36."""
    for name, fan_in in (("widen", 8), ("mix", 36)):
        he = np.sqrt(2 / (1 + LEAK**2) / fan_in)
        np.testing.assert_allclose(np.std(params[name]["kernel"]), he / 2, rtol=0.15)


def test_hes_scale_keeps_the_size_of_what_passes_through():
    x = jax.random.normal(jax.random.key(0), (500, 300))
    for i in range(4):
        x = jax.nn.leaky_relu(x @ he_normal()(jax.random.key(i + 1), (300, 300)), LEAK)
    np.testing.assert_allclose(np.mean(np.square(x)), 1, rtol=0.1)


@pytest.mark.parametrize("factor", [2, 0.5])
def test_resizing_keeps_what_is_constant_and_what_is_linear_inside(factor):
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None, None], (1, 8, 8, 1))
    size = int(8 * factor)
    np.testing.assert_allclose(resized(jnp.full_like(ramp, 3), factor), np.full((1, size, size, 1), 3), rtol=1e-6)
    centres = (np.arange(size) + 0.5) / factor - 0.5
    inside = slice(2, -2) if factor == 2 else slice(1, -1)
    np.testing.assert_allclose(resized(ramp, factor)[0, inside, 0, 0], centres[inside], rtol=1e-5)


@pytest.mark.parametrize("shape, times", [((8, 8), 1), ((28, 28), 2), ((64, 64), 4), ((8, 32), 1), ((20, 12), 1)])
def test_an_image_is_halved_to_4_to_7_pixels(shape, times):
    assert halvings(*shape) == times


@pytest.mark.parametrize("shape", [(7, 7), (9, 8), (18, 18), (4, 4), (0, 8)])
def test_an_image_that_cannot_be_halved_is_refused(shape):
    with pytest.raises(InputError, match=f"{shape[0]} x {shape[1]} pixels cannot be halved"):
        halvings(*shape)


def test_channels_that_do_not_make_groups_are_refused():
    with pytest.raises(InputError, match="16 channels cannot be divided into groups of 5"):
        jax.eval_shape(InvertedResidual(blocks=1, group_size=5).init, jax.random.key(0), X)
