"""Laws of the adaptive weight: the ratio of whole gradients at the last kernel, by which both terms pull alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.adversarial.adaptive import adaptive_weight, kernel_gradients

RNG = np.random.default_rng(0)
PARAMS = {"first": jnp.asarray(RNG.normal(size=(3, 5))), "last": jnp.asarray(RNG.normal(size=(5, 2)))}
X, Y, DIRECTION = (jnp.asarray(RNG.normal(size=shape)) for shape in ((8, 3), (8, 2), (2,)))


def features(params):
    return jnp.tanh(X @ params["first"])


def losses(h, kernel, rows=slice(None)):
    """Sums over rows, divided by the rows of the batch."""
    image = (h @ kernel)[rows]
    return jnp.abs(image - Y[rows]).sum() / 8, -jnp.tanh(image @ DIRECTION).sum() / 8


@pytest.fixture(scope="module")
def whole():
    """Gradients of both losses by all parameters."""
    return [jax.grad(lambda params, i=i: losses(features(params), params["last"])[i])(PARAMS) for i in range(2)]


def test_gradients_at_the_last_kernel_are_those_of_the_whole_network(whole):
    found = kernel_gradients(lambda kernel: losses(features(PARAMS), kernel), PARAMS["last"])
    for gradient, expected in zip(found, whole, strict=True):
        np.testing.assert_allclose(gradient, expected["last"], rtol=1e-5, atol=1e-7)


def test_the_weight_is_the_ratio_of_norms_and_evens_both_terms(whole):
    norms = [np.linalg.norm(gradient["last"]) for gradient in whole]
    weight = adaptive_weight(whole[0]["last"], whole[1]["last"])
    np.testing.assert_allclose(weight, norms[0] / (norms[1] + 1e-4), rtol=1e-5)
    np.testing.assert_allclose(weight * norms[1], norms[0], rtol=1e-3)


def test_gradients_of_parts_of_a_batch_add_up_and_their_ratios_do_not():
    parts = [slice(0, 3), slice(3, 8)]
    h = features(PARAMS)
    found = [kernel_gradients(lambda kernel, rows=rows: losses(h, kernel, rows), PARAMS["last"]) for rows in parts]
    summed = [sum(pair) for pair in zip(*found, strict=True)]
    weight = adaptive_weight(*kernel_gradients(lambda kernel: losses(h, kernel), PARAMS["last"]))
    np.testing.assert_allclose(adaptive_weight(*summed), weight, rtol=1e-5)
    assert abs(np.mean([adaptive_weight(*pair) for pair in found]) / weight - 1) > 1e-3


def test_it_is_bounded_and_finite_where_the_critic_says_nothing():
    nothing, some = jnp.zeros((5, 2)), PARAMS["last"]
    assert adaptive_weight(1e3 * some, nothing) == 1e4 and adaptive_weight(nothing, nothing) == 0


def test_nothing_is_learned_through_the_weight():
    def weight(params):
        return adaptive_weight(*kernel_gradients(lambda kernel: losses(features(params), kernel), params["last"]))

    assert not any(np.any(gradient) for gradient in jax.tree.leaves(jax.grad(weight)(PARAMS)))
