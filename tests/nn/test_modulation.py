"""Laws of adaLN-Zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.modulation import AdaLN


@pytest.fixture
def condition():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)


def test_all_vectors_start_at_zero(condition):
    vectors, _ = AdaLN(width=4, pieces=6).init_with_output(jax.random.key(0), condition)
    assert [v.shape for v in vectors] == [(2, 1, 4)] * 6
    np.testing.assert_array_equal(vectors, np.zeros((6, 2, 1, 4)))


def test_the_pieces_are_consecutive_columns_of_one_linear_map_of_silu(condition):
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(5, 12)).astype(np.float32), rng.normal(size=12).astype(np.float32)
    vectors = AdaLN(width=4, pieces=3).apply({"params": {"linear": {"kernel": kernel, "bias": bias}}}, condition)
    silu = np.asarray(condition / (1 + np.exp(-condition)))
    for i, vector in enumerate(vectors):
        columns = slice(4 * i, 4 * i + 4)
        np.testing.assert_allclose(vector[:, 0], silu @ kernel[:, columns] + bias[columns], atol=1e-5)
