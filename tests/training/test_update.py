"""Laws of the training step, on a small regression whose gradients are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.parallel.mesh import Mesh, replicated, shard_batch
from genjax.training.update import Sums, initial_state, make_update

ROWS = 8


def loss(params, batch, keys):
    """Squared error of a linear model on noised inputs, weighted by row."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    error = ((batch["x"] + 0.1 * noise) @ params["w"] + params["b"] - batch["y"]) ** 2
    return Sums((batch["weight"] * error).sum(), batch["weight"].sum(), {"error": (batch["weight"] * error).sum()})


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(ROWS, 3)).astype(np.float32),
        "y": rng.normal(size=ROWS).astype(np.float32),
        "weight": rng.uniform(0.5, 2, ROWS).astype(np.float32),
    }


def trained(batch, steps=10, *, devices=1, optimizer=None, **options):
    optimizer = optimizer or optax.adamw(1e-2)
    mesh = Mesh(data=devices).build()
    update = make_update(loss, optimizer, mesh, seed=0, **options)
    params = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array(0.1)}
    state = jax.device_put(initial_state(params, optimizer), replicated(mesh))
    for _ in range(steps):
        state, metrics = update(state, shard_batch(batch, mesh))
    return jax.device_get(state), jax.device_get(metrics), update


def assert_close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("algorithm", ["psum", "ring"])
def test_the_number_of_devices_changes_nothing(batch, devices, algorithm):
    assert_close(trained(batch)[:2], trained(batch, devices=devices, all_reduce_algorithm=algorithm)[:2])


@pytest.mark.parametrize(("devices", "micro_batches"), [(1, 2), (1, 8), (2, 4), (4, 2)])
def test_the_number_of_micro_batches_changes_nothing(batch, devices, micro_batches):
    assert_close(trained(batch)[:2], trained(batch, devices=devices, micro_batches=micro_batches)[:2])


def test_a_step_is_the_gradient_of_the_weighted_mean(batch):
    """One plain gradient step equals the one by hand, from sums over all rows."""
    state, metrics, _ = trained(batch, steps=1, optimizer=optax.sgd(0.1))
    step_key = jax.random.fold_in(jax.random.key(0), 0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(ROWS))
    params = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array(0.1)}

    def weighted_mean(params):
        sums = loss(params, batch, keys)
        return sums.loss / sums.weight

    value, gradient = jax.value_and_grad(weighted_mean)(params)
    assert_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["error"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradient), rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_only_the_counters(batch, poison):
    optimizer = optax.adamw(1e-2)
    mesh = Mesh(data=2).build()
    update = make_update(loss, optimizer, mesh, seed=0)
    state = jax.device_put(initial_state({"w": jnp.ones(3), "b": jnp.array(0.0)}, optimizer), replicated(mesh))
    state, _ = update(state, shard_batch(batch, mesh))
    before = jax.device_get(state)
    bad = batch | {"y": np.where(np.arange(ROWS) == 5, poison, batch["y"]).astype(np.float32)}
    for count in (1, 2):
        state, metrics = update(state, shard_batch(bad, mesh))
        assert metrics["skipped_in_a_row"] == count
    after = jax.device_get(state)
    jax.tree.map(np.testing.assert_array_equal, (before.params, before.ema, before.optimizer),
                 (after.params, after.ema, after.optimizer))  # fmt: skip
    assert (after.step, after.updates, after.skipped_in_a_row) == (3, 1, 2)
    state, metrics = update(state, shard_batch(batch, mesh))
    assert metrics["skipped_in_a_row"] == 0
    assert int(state.updates) == 2
    assert not np.array_equal(state.params["w"], before.params["w"])


def test_the_step_compiles_once(batch):
    *_, update = trained(batch, steps=4, devices=2)
    assert update._cache_size() == 1


def test_the_state_is_donated(batch):
    optimizer = optax.sgd(0.1)
    mesh = Mesh(data=1).build()
    update = make_update(loss, optimizer, mesh, seed=0)
    state = jax.device_put(initial_state({"w": jnp.ones(3), "b": jnp.array(0.0)}, optimizer), replicated(mesh))
    update(state, shard_batch(batch, mesh))
    assert state.params["w"].is_deleted()


def test_steps_and_samples_have_random_numbers_of_their_own(batch):
    """The same batch gives another loss at another step, and equal rows another noise each."""
    seen = []

    def spy(params, batch, keys):
        noise = jax.vmap(lambda key: jax.random.uniform(key))(keys)
        return Sums(0.0 * params["w"].sum(), jnp.asarray(1.0), {"first": noise[0], "last": noise[-1]})

    optimizer = optax.sgd(0.1)
    mesh = Mesh(data=1).build()
    update = make_update(spy, optimizer, mesh, seed=0)
    state = jax.device_put(initial_state({"w": jnp.ones(3), "b": jnp.array(0.0)}, optimizer), replicated(mesh))
    for _ in range(3):
        state, metrics = update(state, shard_batch(batch, mesh))
        seen += [float(metrics["first"]), float(metrics["last"])]
    assert len(set(seen)) == 6
