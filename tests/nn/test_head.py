"""Laws of the head of a language model."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from genjax.nn.head import Head, tied_logits

HIDDEN = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)


def test_a_tied_head_is_a_head_whose_kernel_is_the_transposed_embedding():
    found = Head(5).apply({"params": {"kernel": KERNEL}}, HIDDEN)
    np.testing.assert_allclose(found, HIDDEN @ KERNEL, rtol=0, atol=1e-6)
    np.testing.assert_allclose(tied_logits(HIDDEN, KERNEL.T), found, rtol=0, atol=1e-6)


def test_logits_are_not_rounded_to_what_the_network_computes_in():
    hidden, kernel = (jnp.asarray(array, jnp.bfloat16) for array in (HIDDEN, KERNEL))
    exact = np.float32(hidden) @ np.float32(kernel)
    for found in (Head(5).apply({"params": {"kernel": kernel}}, hidden), tied_logits(hidden, kernel.T)):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)


def test_the_axes_of_its_kernel_are_named_and_it_has_no_bias():
    fresh = jax.eval_shape(Head(5).init, jax.random.key(0), HIDDEN)["params"]
    assert fresh.keys() == {"kernel"} and fresh["kernel"].names == ("embed", "vocab")
    assert meta.unbox(fresh)["kernel"].shape == (4, 5)
