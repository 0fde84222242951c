"""Laws of the two gradients through the choice of a code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.quantisation.finite_scalar import FSQ
from genjax.quantisation.lookup_free import LFQ
from genjax.quantisation.quantiser import ESTIMATES, direction, rotated, straight_through
from genjax.quantisation.residual import Residual
from genjax.quantisation.vector import VQ, AverageVQ

RNG = np.random.default_rng(0)
Z, Q = (jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32) for _ in range(2))


def rotation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """That of the plane of two vectors which turns one into the direction of the other, from its angle."""
    e_1 = a / np.linalg.norm(a)
    rest = b - (b @ e_1) * e_1
    e_2 = rest / np.linalg.norm(rest)
    cos, sin = b @ e_1 / np.linalg.norm(b), b @ e_2 / np.linalg.norm(b)
    plane = np.stack([e_1, e_2])
    return np.eye(len(a)) + plane.T @ (np.array([[cos, -sin], [sin, cos]]) - np.eye(2)) @ plane


@pytest.mark.parametrize("name", ESTIMATES)
def test_the_value_is_the_code(name):
    np.testing.assert_array_equal(ESTIMATES[name](Z, Q), Q)


@pytest.mark.parametrize("name", ESTIMATES)
def test_codes_have_no_gradient_through_the_estimate(name):
    assert not np.any(jax.grad(lambda q: jnp.sum(ESTIMATES[name](Z, q) ** 2))(Q))


def test_the_jacobian_of_straight_through_is_the_identity():
    jacobians = jax.vmap(jax.jacobian(straight_through))(Z, Q)
    np.testing.assert_array_equal(jacobians, np.broadcast_to(np.eye(5), (6, 5, 5)))


def test_the_jacobian_of_rotated_is_the_rotation_from_vector_to_code_times_the_ratio_of_their_lengths():
    jacobians = jax.vmap(jax.jacobian(rotated))(Z, Q)
    for jacobian, z, q in zip(jacobians, np.float64(Z), np.float64(Q), strict=True):
        expected = rotation(z, q) * np.linalg.norm(q) / np.linalg.norm(z)
        np.testing.assert_allclose(jacobian, expected, atol=2e-6)
        np.testing.assert_allclose(jacobian @ z, q, atol=2e-6)


@pytest.mark.parametrize(
    "z, q",
    [
        ([0.0, 0.0], [1.0, 2.0]),
        ([5e-7, 0.0], [1.0, 2.0]),
        ([1.0, 2.0], [0.0, 5e-7]),
        ([1.0, 2.0], [0.0, 0.0]),
        ([1.0, 2.0], [-2.0, -4.0]),
    ],
)
def test_where_no_rotation_is_singled_out_rotated_is_straight_through(z, q):
    jacobian = jax.jacobian(rotated)(jnp.array(z), jnp.array(q))
    np.testing.assert_array_equal(jacobian, np.eye(2))


def test_a_direction_has_length_one_and_zero_has_none_and_a_finite_gradient():
    np.testing.assert_allclose(jnp.linalg.norm(direction(1e3 * Z), axis=-1), 1, rtol=1e-6)
    assert not np.any(direction(jnp.zeros(3)))
    assert np.all(np.isfinite(jax.jacobian(direction)(jnp.zeros(3))))


QUANTISERS = [VQ(4, 3), AverageVQ(4, 3), FSQ((4, 3, 2)), LFQ(bits=3), Residual(AverageVQ(4, 3))]


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda it: type(it).__name__)
def test_figures_are_summed_in_float32_and_another_width_is_refused(quantiser):
    own = quantiser.init(jax.random.key(0))
    said = quantiser(jnp.full((600, 3), 0.5, jnp.bfloat16), *own)
    assert {leaf.dtype for leaf in jax.tree.leaves((said.losses, said.statistics))} <= {jnp.dtype(jnp.float32)}
    if "counts" in said.statistics:
        assert jnp.sum(said.statistics["counts"], axis=-1).max() == 600  # bfloat16 stops at 256
    np.testing.assert_array_equal(quantiser.codes(said.ids, *own), said.z_q)
    with pytest.raises(InputError, match="takes vectors of 3 coordinates, not of 5"):
        quantiser(jnp.zeros((2, 5)), *own)


@pytest.mark.parametrize("kind", [VQ, AverageVQ])
def test_the_estimate_is_the_one_that_was_asked_for(kind):
    for name, estimate in ESTIMATES.items():
        quantiser = kind(4, 3, estimate=name)
        own = quantiser.init(jax.random.key(0))
        z = jnp.array([0.3, -0.2, 0.9])
        code = quantiser(z, *own).z_q
        np.testing.assert_allclose(
            jax.jacobian(lambda z, quantiser=quantiser, own=own: quantiser(z, *own).z_q)(z),
            jax.jacobian(lambda z, estimate=estimate, code=code: estimate(z, code))(z),
            atol=1e-6,
        )
