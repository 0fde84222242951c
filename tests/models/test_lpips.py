"""Laws of LPIPS: a distance, of what it is made, and what it cannot compare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from genjax.errors import InputError
from genjax.models.lpips import LPIPS, unit_channels

KEY = jax.random.key(0)
X, Y = jax.random.uniform(KEY, (2, 2, 16, 16, 3), minval=-1)


@pytest.fixture(scope="module")
def params():
    return meta.unbox(jax.jit(LPIPS().init)(KEY, X, Y))["params"]


def test_the_convolutions_are_those_of_vgg16():
    """14,714,688 parameters (Simonyan and Zisserman 2014, configuration D without its linear layers)."""
    shapes = jax.eval_shape(lambda: meta.unbox(LPIPS().init(KEY, X, Y))["params"])
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["trunk"])) == 14_714_688
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 14_714_688 + 64 + 128 + 256 + 512 + 512


@pytest.mark.slow
def test_it_is_nothing_between_equals_the_same_both_ways_and_linear_in_its_heads(params):
    apply = jax.jit(lambda params, x, y: LPIPS().apply({"params": params}, x, y))
    there, back = apply(params, X, Y), apply(params, Y, X)
    np.testing.assert_array_equal(apply(params, X, X), [0, 0])
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert (there > 0).all()
    parts = []
    for stage in range(5):
        one = {f"lin{i}": jnp.where(i == stage, 1.0, 0.0) * params[f"lin{i}"] for i in range(5)}
        parts.append(apply(params | one, X, Y))
    np.testing.assert_allclose(sum(parts), there, rtol=1e-5)


def test_channels_have_length_one_and_a_finite_gradient_at_zero():
    h = jnp.concatenate([jax.random.normal(KEY, (1, 2, 2, 5)), jnp.zeros((1, 2, 2, 5))])
    lengths = jnp.linalg.norm(unit_channels(h), axis=-1)
    np.testing.assert_allclose(lengths[0], 1, rtol=1e-6)
    np.testing.assert_array_equal(lengths[1], 0)
    assert np.isfinite(jax.grad(lambda h: unit_channels(h).sum())(h)).all()


@pytest.mark.parametrize("shape", [(1, 15, 16, 3), (1, 16, 16, 1)])
def test_what_it_cannot_compare_is_refused(shape):
    with pytest.raises(InputError, match="LPIPS compares colour pictures of 16 pixels a side or more"):
        jax.eval_shape(LPIPS().init, KEY, jnp.zeros(shape), jnp.zeros(shape))
