"""Laws of codes of signs: the softmax over all codes factorises, and the running mean stands in for that of a batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.quantisation.lookup_free import LFQ

RNG = np.random.default_rng(0)
LOOKUP = LFQ(bits=4, temperature=1.5)
Z = jnp.asarray(RNG.normal(size=(32, 4)), jnp.float32)
_, FRESH = LOOKUP.init(jax.random.key(0))


def probabilities(z) -> np.ndarray:
    """By the definition: a softmax over squared distances to all codes."""
    codes = LOOKUP.codes(jnp.arange(16), {}, {})
    return jax.nn.softmax(-jnp.sum((z[:, None] - codes) ** 2, axis=-1) / LOOKUP.temperature)


def test_ids_and_codes_are_one_to_one():
    codes = LOOKUP.codes(jnp.arange(16), {}, {})
    assert len(np.unique(codes, axis=0)) == 16 and set(np.unique(codes)) == {-1, 1}
    said = LOOKUP(codes * 0.3, {}, FRESH)
    np.testing.assert_array_equal(said.ids, np.arange(16))
    np.testing.assert_array_equal(said.z_q, codes)


def test_probabilities_are_the_softmax_over_distances_to_all_codes():
    np.testing.assert_allclose(jnp.exp(LOOKUP.log_probabilities(Z)), probabilities(Z), rtol=1e-5, atol=1e-7)


def test_the_entropy_of_a_position_is_that_of_its_probabilities():
    p = np.float64(probabilities(Z))
    np.testing.assert_allclose(LOOKUP.entropy(Z), -np.sum(p * np.log(p), axis=-1), rtol=1e-5)


@pytest.mark.parametrize("diversity", [0.0, 1.0])
def test_with_the_mean_of_the_batch_the_gradient_is_that_of_both_entropies(diversity):
    lookup = replace(LOOKUP, diversity=diversity, commitment=0.0)

    def both_entropies(z):
        p = probabilities(z)
        mean = jnp.mean(p, axis=0)
        return 0.1 * (jnp.mean(-jnp.sum(p * jnp.log(p), axis=-1)) + diversity * jnp.sum(mean * jnp.log(mean)))

    variables = {"use": jnp.mean(probabilities(Z), axis=0)}
    ours = jax.grad(lambda z: jnp.mean(lookup(z, {}, variables).losses["entropy"]))(Z)
    np.testing.assert_allclose(ours, jax.grad(both_entropies)(Z), atol=1e-7)


def test_the_running_mean_goes_to_that_of_the_batches_and_stays_one_of_probabilities():
    variables = FRESH
    for _ in range(150):
        variables = LOOKUP.advance(variables, LOOKUP(Z, {}, variables).statistics)
    np.testing.assert_allclose(variables["use"], jnp.mean(probabilities(Z), axis=0), rtol=1e-4)
    np.testing.assert_allclose(jnp.sum(variables["use"]), 1, rtol=1e-5)


def test_a_cold_softmax_of_a_vector_between_codes_has_finite_losses_and_gradients():
    lookup = replace(LOOKUP, temperature=0.01)
    for z in (jnp.zeros((1, 4)), jnp.full((1, 4), 1e3)):
        value, gradient = jax.value_and_grad(lambda z: jnp.sum(sum(lookup(z, {}, FRESH).losses.values())))(z)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("wrong", [{"bits": 0}, {"bits": 40}, {"temperature": 0.0}, {"decay": 1.0}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match="LFQ"):
        LFQ(**wrong)


def test_at_zero_code_and_id_agree_and_the_commitment_is_the_mean_square_to_the_signs():
    z = jnp.array([[0.0, 0.5, -2.0, 0.0]])
    said = LOOKUP(z, {}, FRESH)
    np.testing.assert_array_equal(LOOKUP.codes(said.ids, {}, {}), said.z_q)
    np.testing.assert_allclose(said.losses["commitment"], 0.25 * np.mean([1, 0.25, 1, 1]), rtol=1e-6)
