"""Laws of spectral normalisation: power iteration finds the norm, its derivative, and a 1-Lipschitz chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.adversarial import spectral
from genjax.adversarial.spectral import normalise, power_iterate, spectral_norm

initial_vectors, advance = jax.jit(spectral.initial_vectors), jax.jit(spectral.advance)

RNG = np.random.default_rng(0)
KERNEL = jnp.asarray(RNG.normal(size=(3, 3, 4, 5)), jnp.float32)
MATRIX = np.float64(KERNEL).reshape(36, 5)
PARAMS = {
    "first": {"kernel": jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32), "bias": jnp.ones(6)},
    "block": {"conv": {"kernel": KERNEL}, "norm": {"scale": jnp.ones(5)}},
    "labels": {"embedding": jnp.asarray(RNG.normal(size=(10, 6)), jnp.float32)},
}


@jax.jit
def iterated(kernel, u):
    return jax.lax.fori_loop(0, 200, lambda _, u: power_iterate(kernel, u).u, u)


def test_power_iteration_converges_to_the_largest_singular_value_and_its_vectors():
    u, v, sigma = power_iterate(KERNEL, iterated(KERNEL, jnp.ones(5)))
    np.testing.assert_allclose(sigma, np.linalg.norm(MATRIX, 2), rtol=1e-6)
    left, _, right = np.linalg.svd(MATRIX, full_matrices=False)
    np.testing.assert_allclose(abs(v @ left[:, 0]), 1, rtol=1e-6)
    np.testing.assert_allclose(abs(u @ right[0]), 1, rtol=1e-6)


def test_the_estimate_rises_at_every_step_and_never_passes_the_norm():
    u, estimates = jnp.eye(5)[0], []
    for _ in range(12):
        u, _, sigma = power_iterate(KERNEL, u)
        estimates.append(float(sigma))
    assert (np.diff(estimates) > -1e-5).all()
    assert estimates[0] < estimates[-1] <= np.linalg.norm(MATRIX, 2) * (1 + 1e-6)


def test_sigma_has_the_gradient_v_times_u_as_the_true_norm_has():
    u, v, _ = power_iterate(KERNEL, iterated(KERNEL, jnp.ones(5)))
    expected = np.outer(v, u).reshape(KERNEL.shape)
    through_iteration = jax.grad(lambda kernel: power_iterate(kernel, u).sigma)(KERNEL)
    np.testing.assert_allclose(through_iteration, expected, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda k: spectral_norm(k, u, v))(KERNEL), expected, atol=1e-6)
    true = jax.grad(lambda kernel: jnp.linalg.norm(kernel.reshape(36, 5), 2))(KERNEL)
    np.testing.assert_allclose(through_iteration, true, atol=1e-5)


def test_no_derivative_runs_through_the_iteration_also_far_from_its_end():
    u, v, _ = power_iterate(KERNEL, jnp.eye(5)[0])
    gradient = jax.grad(lambda kernel: power_iterate(kernel, jnp.eye(5)[0]).sigma)(KERNEL)
    np.testing.assert_allclose(gradient, np.outer(v, u).reshape(KERNEL.shape), atol=1e-6)


def test_the_gradient_through_a_normalised_kernel_is_orthogonal_to_it():
    """d/dW f(W / sigma) = (G - <G, W / sigma> v u^T) / sigma, orthogonal to W: rescaling W changes nothing."""
    vectors = initial_vectors(PARAMS, jax.random.key(0))
    target = jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32)

    def inner(params):
        return jnp.sum(target * normalise(params, vectors)["first"]["kernel"])

    kernel, pair = np.float64(PARAMS["first"]["kernel"]), vectors["first"]["kernel"]
    v, u = np.float64(pair["v"]), np.float64(pair["u"])
    sigma = v @ kernel @ u
    gradient = jax.jit(jax.grad(inner))(PARAMS)["first"]["kernel"]
    expected = (np.float64(target) - np.sum(target * kernel) / sigma * np.outer(v, u)) / sigma
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    np.testing.assert_allclose(np.sum(gradient * kernel), 0, atol=1e-5)


def test_kernels_and_embeddings_get_norm_one_and_all_else_stays_as_it_is():
    vectors = initial_vectors(PARAMS, jax.random.key(0))
    assert jax.tree.structure(vectors) == jax.tree.structure(
        {
            "first": {"kernel": {"u": 0, "v": 0}},
            "block": {"conv": {"kernel": {"u": 0, "v": 0}}, "norm": {}},
            "labels": {"embedding": {"u": 0, "v": 0}},
        }
    )
    for _ in range(50):
        vectors = advance(PARAMS, vectors)
    normalised = normalise(PARAMS, vectors)
    for kernel in (
        normalised["first"]["kernel"],
        normalised["block"]["conv"]["kernel"],
        normalised["labels"]["embedding"],
    ):
        np.testing.assert_allclose(np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2), 1, rtol=1e-5)
    assert jax.tree.structure(normalised) == jax.tree.structure(PARAMS)
    np.testing.assert_array_equal(normalised["first"]["bias"], 1)
    np.testing.assert_array_equal(normalised["block"]["norm"]["scale"], 1)


def test_a_normalised_chain_of_linear_maps_and_rectifiers_is_1_lipschitz_and_a_linear_one_reaches_it():
    chain = {f"fc{i}": {"kernel": jnp.asarray(3 * RNG.normal(size=(6, 6)), jnp.float32)} for i in range(3)}
    vectors = initial_vectors(chain, jax.random.key(0))
    for _ in range(30):
        vectors = advance(chain, vectors)
    normalised = normalise(chain, vectors)

    def critic(x):
        for layer in normalised.values():
            x = jax.nn.leaky_relu(x @ layer["kernel"], 0.2)
        return x

    x, y = RNG.normal(size=(2, 400, 6)).astype(np.float32)
    slopes = np.linalg.norm(critic(x) - critic(y), axis=1) / np.linalg.norm(x - y, axis=1)
    assert 0.01 < slopes.max() <= 1 + 1e-5
    steepest = vectors["fc0"]["kernel"]["v"]
    np.testing.assert_allclose(np.linalg.norm(steepest @ normalised["fc0"]["kernel"]), 1, rtol=1e-4)


def test_a_kernel_of_zeros_is_left_alone_and_can_be_followed_once_it_moves():
    params = {"kernel": jnp.zeros((4, 3))}
    vectors = initial_vectors(params, jax.random.key(0))
    np.testing.assert_array_equal(normalise(params, vectors)["kernel"], 0)
    assert np.isfinite(jax.grad(lambda p: normalise(p, vectors)["kernel"].sum())(params)["kernel"]).all()
    moved = {"kernel": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
    for _ in range(100):
        vectors = advance(moved, vectors)
    np.testing.assert_allclose(np.linalg.norm(normalise(moved, vectors)["kernel"], 2), 1, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_first_vectors_are_already_near(seed):
    vectors = initial_vectors(PARAMS, jax.random.key(seed))
    kernel = normalise(PARAMS, vectors)["block"]["conv"]["kernel"].reshape(36, 5)
    assert 1 - 1e-6 < np.linalg.norm(kernel, 2) < 1.05
