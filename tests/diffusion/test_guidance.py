"""Laws of classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.guidance import classifier_free_guidance
from genjax.diffusion.predictions import Velocity


@jax.jit
def denoiser(x_t, t, condition):
    return jnp.tanh(condition["gain"][:, None] * x_t + t[:, None] + condition["more"][0])


@pytest.fixture
def inputs():
    """x_t (3, 4), t (3,), a tree of conditions, and the unconditional one."""
    normal = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    trees = ({"gain": normal[i, :, 0], "more": [normal[i + 1]]} for i in (1, 3))
    return normal[0], np.array([0.1, 0.5, 0.9], np.float32), *trees


@pytest.mark.parametrize(("scale", "which"), [(1.0, "conditional"), (0.0, "unconditional")])
def test_scale_one_is_conditional_and_scale_zero_is_unconditional(inputs, scale, which):
    x_t, t, condition, unconditional = inputs
    guided = classifier_free_guidance(denoiser, unconditional, scale)(x_t, t, condition)
    expected = denoiser(x_t, t, {"conditional": condition, "unconditional": unconditional}[which])
    np.testing.assert_allclose(guided, expected, atol=1e-6)


def test_it_equals_two_separate_calls(inputs):
    x_t, t, condition, unconditional = inputs
    c, u = denoiser(x_t, t, condition), denoiser(x_t, t, unconditional)
    guided = classifier_free_guidance(denoiser, unconditional, 5.0)(x_t, t, condition)
    np.testing.assert_allclose(guided, u + 5 * (c - u), atol=1e-5)


def test_it_is_affine_in_the_scale_which_may_be_traced(inputs):
    x_t, t, condition, unconditional = inputs
    guided = jax.jit(lambda scale: classifier_free_guidance(denoiser, unconditional, scale)(x_t, t, condition))
    np.testing.assert_allclose(guided(3.0), (guided(1.0) + guided(5.0)) / 2, atol=1e-5)


def test_a_condition_equal_to_the_unconditional_is_not_guided(inputs):
    x_t, t, condition, _ = inputs
    guided = classifier_free_guidance(denoiser, condition, 7.0)(x_t, t, condition)
    np.testing.assert_allclose(guided, denoiser(x_t, t, condition), atol=1e-6)


def test_the_network_runs_once_on_twice_the_batch(inputs):
    x_t, t, condition, unconditional = inputs
    batches = []

    def counted(x_t, t, condition):
        batches.append((len(x_t), len(t), *(len(leaf) for leaf in jax.tree.leaves(condition))))
        return denoiser(x_t, t, condition)

    classifier_free_guidance(counted, unconditional, 2.0)(x_t, t, condition)
    assert batches == [(6, 6, 6, 6)]


def test_guiding_the_velocity_is_guiding_the_estimate_of_the_data(inputs, process):
    x_t, t, condition, unconditional = inputs

    def estimate(x_t, t, condition):
        return Velocity().denoised(process, denoiser(x_t, t, condition), x_t, t).x_0

    guided_velocity = classifier_free_guidance(denoiser, unconditional, 4.0)(x_t, t, condition)
    guided_estimate = classifier_free_guidance(estimate, unconditional, 4.0)(x_t, t, condition)
    np.testing.assert_allclose(Velocity().denoised(process, guided_velocity, x_t, t).x_0, guided_estimate, atol=1e-5)
