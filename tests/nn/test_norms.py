"""Laws of the normalisations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from genjax.nn.norms import LayerNorm, RMSNorm, layer_norm, residual_layer_norm


@pytest.fixture
def x():
    """(2, 3, 32), far from zero mean and unit variance."""
    return jnp.asarray(np.random.default_rng(0).normal(5, 3, size=(2, 3, 32)), jnp.float32)


def rms_norm(x, scale=None):
    return RMSNorm().apply({"params": {"scale": jnp.ones(x.shape[-1]) if scale is None else scale}}, x)


def test_layer_norm_gives_zero_mean_and_unit_variance(x):
    y = np.asarray(layer_norm(x))
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(axis=-1), 1, rtol=1e-5)


def test_layer_norm_does_not_see_shifts_and_scales(x):
    np.testing.assert_allclose(layer_norm(4 * x + 100), layer_norm(x), atol=2e-5)


def test_layer_norm_equals_flax_without_affine_parameters(x):
    flax = nn.LayerNorm(use_scale=False, use_bias=False, epsilon=1e-6, use_fast_variance=False)
    np.testing.assert_allclose(layer_norm(x), flax.apply({}, x), atol=1e-6)


def test_layer_norm_with_parameters_equals_flax_and_starts_without_effect(x):
    params = {"scale": jnp.linspace(0.5, 2, 32), "bias": jnp.linspace(-1, 1, 32)}
    flax = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    found = LayerNorm(1e-5).apply({"params": params}, x)
    np.testing.assert_allclose(found, flax.apply({"params": params}, x), atol=2e-6)
    fresh = meta.unbox(LayerNorm(1e-5).init(jax.random.key(0), x))
    np.testing.assert_array_equal(LayerNorm(1e-5).apply(fresh, x), layer_norm(x, epsilon=1e-5))


def test_layer_norm_of_a_constant_is_zero():
    np.testing.assert_array_equal(layer_norm(jnp.full((2, 8), 7.0)), 0)


def test_rms_norm_gives_unit_mean_square(x):
    np.testing.assert_allclose(np.square(rms_norm(x)).mean(axis=-1), 1, rtol=1e-5)


def test_rms_norm_does_not_see_scales_but_keeps_signs(x):
    np.testing.assert_allclose(rms_norm(-3 * x), -rms_norm(x), rtol=1e-5)


def test_rms_norm_equals_flax(x):
    params = {"scale": jnp.linspace(0.5, 2, 32)}
    np.testing.assert_allclose(
        RMSNorm().apply({"params": params}, x), nn.RMSNorm(epsilon=1e-6).apply({"params": params}, x), rtol=1e-6
    )


def test_the_scale_of_rms_norm_starts_at_one_and_multiplies(x):
    np.testing.assert_array_equal(meta.unbox(RMSNorm().init(jax.random.key(0), x))["params"]["scale"], np.ones(32))
    np.testing.assert_allclose(rms_norm(x, jnp.arange(32.0)), rms_norm(x) * jnp.arange(32.0), rtol=1e-6)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_statistics_of_bfloat16_are_taken_in_float32(norm, x):
    # Only the input and the output are rounded: with a mean of 1000 nothing else would survive.
    half = (x + 1000 * (norm is layer_norm)).astype(jnp.bfloat16)
    y = norm(half)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, norm(half.astype(jnp.float32)).astype(jnp.bfloat16))


def test_modulation_is_the_same_for_all_tokens_of_a_sample_and_differs_between_samples(x):
    scale, shift = (jnp.asarray(np.random.default_rng(i).normal(size=(2, 1, 32)), jnp.float32) for i in (1, 2))
    expected = layer_norm(x) * (1 + scale) + shift
    np.testing.assert_allclose(layer_norm(x, scale=scale, shift=shift), expected, atol=1e-6)


def test_the_gated_residual_is_normalised_in_the_same_pass(x):
    branch, gate = x[::-1] * 2, jnp.full((2, 1, 32), 0.3)
    stream, normed = residual_layer_norm(x, branch, gate)
    np.testing.assert_allclose(stream, x + gate * branch, rtol=1e-6)
    np.testing.assert_array_equal(normed, layer_norm(stream))
