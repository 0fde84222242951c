"""Laws of sums of codes: each level is given what is left, and the gradient counts a vector once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.quantisation.quantiser import rotated
from genjax.quantisation.residual import Residual
from genjax.quantisation.vector import VQ, AverageVQ

RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(256, 3)), jnp.float32)
LEVELS = [VQ(size=4, width=3), AverageVQ(size=4, width=3)]
KEY = jax.random.key(0)


@pytest.mark.parametrize("level", LEVELS)
def test_it_is_each_level_by_hand(level):
    quantiser = Residual(level, depth=3)
    params, variables = quantiser.init(KEY)
    said = quantiser(Z, params, variables)
    rest, losses = Z, []
    for i in range(3):
        own = jax.tree.map(lambda x, i=i: x[i], (params, variables))
        alone = level(rest, *own)
        np.testing.assert_array_equal(said.ids[:, i], alone.ids)
        np.testing.assert_allclose(
            quantiser.codes(said.ids[:, : i + 1], params, variables), Z - rest + alone.z_q, atol=1e-6
        )
        rest, losses = rest - alone.z_q, [*losses, alone.losses["commitment"]]
    np.testing.assert_allclose(said.z_q, Z - rest, atol=1e-6)
    np.testing.assert_allclose(said.losses["commitment"], sum(losses), rtol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_of_one_level_it_is_that_level(level):
    params, variables = Residual(level, depth=1).init(KEY)
    said = Residual(level, depth=1)(Z, params, variables)
    alone = level(Z, *jax.tree.map(lambda x: x[0], (params, variables)))
    np.testing.assert_array_equal(said.ids[:, 0], alone.ids)
    np.testing.assert_array_equal(said.z_q, alone.z_q)


@pytest.mark.parametrize("level", LEVELS)
def test_a_vector_counts_once_however_many_levels(level):
    quantiser = Residual(level, depth=3)
    own = quantiser.init(KEY)
    jacobian = jax.jacobian(lambda z: quantiser(z, *own).z_q)(Z[0])
    np.testing.assert_array_equal(jacobian, np.eye(3))


def test_every_level_learned_lowers_the_distortion():
    quantiser = Residual(AverageVQ(size=8, width=3), depth=3)
    _, variables = quantiser.init(KEY)
    step = jax.jit(lambda variables: quantiser.advance(variables, quantiser(Z, {}, variables).statistics))
    for _ in range(100):
        variables = step(variables)
    ids = quantiser(Z, {}, variables).ids
    figures = [float(jnp.mean((quantiser.codes(ids[:, :depth], {}, variables) - Z) ** 2)) for depth in (1, 2, 3)]
    assert figures[0] < 0.5 and figures[1] < figures[0] / 2 and figures[2] < figures[1] / 2


def test_a_level_without_state_has_none_to_advance():
    quantiser = Residual(LEVELS[0])
    params, variables = quantiser.init(KEY)
    assert quantiser.advance(variables, quantiser(Z, params, variables).statistics) == {}


def test_no_level_and_levels_of_directions_are_refused():
    with pytest.raises(InputError, match="at least 1 level"):
        Residual(depth=0)
    with pytest.raises(InputError, match="not normalised"):
        Residual(VQ(normalised=True))


def test_the_loss_of_a_level_moves_no_level_before_it():
    quantiser = Residual(LEVELS[0], depth=2)
    params, variables = quantiser.init(KEY)

    def by_hand(params):
        rest, total = Z, 0.0
        for i in range(2):
            own = jax.tree.map(lambda x, i=i: x[i], params)
            said = LEVELS[0](jax.lax.stop_gradient(rest), own, {})
            total, rest = total + jnp.sum(said.losses["codebook"]), rest - said.z_q
        return total

    whole = jax.grad(lambda params: jnp.sum(quantiser(Z, params, variables).losses["codebook"]))(params)
    np.testing.assert_allclose(whole["codebook"], jax.grad(by_hand)(params)["codebook"], rtol=1e-4, atol=1e-4)
    both = jax.grad(lambda params: sum(map(jnp.sum, quantiser(Z, params, variables).losses.values())))(params)
    np.testing.assert_allclose(both["codebook"], whole["codebook"], rtol=1e-4, atol=1e-4)


def test_the_estimate_is_that_of_the_sum():
    quantiser = Residual(LEVELS[1], depth=2, estimate="rotated")
    own = quantiser.init(KEY)
    code = quantiser(Z[0], *own).z_q
    found, expected = (jax.jacobian(f)(Z[0]) for f in (lambda z: quantiser(z, *own).z_q, lambda z: rotated(z, code)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(InputError, match="no estimate of its own"):
        Residual(VQ(estimate="rotated"))
