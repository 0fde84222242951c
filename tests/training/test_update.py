"""Laws of the training step, on a small regression and a small game whose gradients are known."""

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.parallel.mesh import Mesh, replicated, shard_batch
from genjax.training.loss_scale import FIRST, PATIENCE
from genjax.training.optimizer import SGD, AdamW
from genjax.training.state import initial_state
from genjax.training.task import Sums
from genjax.training.update import make_update
from tests.training.games import ROWS, Game, Regression, batch

REGRESSION = Regression()


def with_train(task, **changes):
    return replace(task, train=replace(task.train, **changes))


def fresh(task, mesh):
    return jax.device_put(initial_state(task, jax.random.key(0)), replicated(mesh))


@functools.cache
def update_of(task):
    """Tests of one task share what it compiles."""
    return make_update(task, task.mesh.build())


def trained(task, steps=10):
    mesh = task.mesh.build()
    update, state, rows = update_of(task), fresh(task, mesh), shard_batch(batch(), mesh)
    for _ in range(steps):
        state, told = update(state, rows)
    means = {name: float(total / weight) for name, (total, weight) in jax.device_get(told.means).items() if weight}
    return jax.device_get(state), means, update


def assert_close(a, b, tolerance=1e-6):
    chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def alone():
    return {type(task): trained(replace(task, mesh=Mesh(data=1)))[:2] for task in (REGRESSION, Game())}


@pytest.mark.parametrize("task", [REGRESSION, Game()], ids=["regression", "game"])
@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("algorithm", ["psum", "ring"])
def test_the_number_of_devices_changes_nothing(alone, task, devices, algorithm):
    """Parameters, averages, moments, variables and metrics."""
    assert_close(alone[type(task)], trained(replace(task, mesh=Mesh(data=devices, all_reduce=algorithm)))[:2])


@pytest.mark.parametrize("task", [REGRESSION, Game()], ids=["regression", "game"])
@pytest.mark.parametrize(
    ("devices", "micro_batches"),
    [(1, 8), (2, 4), *(pytest.param(*way, marks=pytest.mark.slow) for way in ((1, 2), (4, 2)))],
)
def test_the_number_of_micro_batches_changes_nothing(alone, task, devices, micro_batches):
    split = with_train(replace(task, mesh=Mesh(data=devices)), accumulate=micro_batches)
    assert_close(alone[type(task)], trained(split)[:2])


def test_a_step_is_the_gradient_of_the_weighted_mean():
    """One plain gradient step equals the one by hand, from sums over all rows."""
    task = replace(REGRESSION, optimizer=SGD(learning_rate=0.1, warmup_steps=0, clip_norm=None))
    state, means, _ = trained(task, steps=1)
    parts, totals = task.init(None), task.totals(batch())
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(jax.random.key(0), 0), jnp.arange(ROWS))

    def weighted_mean(trained):
        return task.loss(parts._replace(trained=trained), batch(), keys, totals).losses["loss"]

    value, gradient = jax.value_and_grad(weighted_mean)(parts.trained)
    assert_close(state.parts.trained, jax.tree.map(lambda p, g: p - 0.1 * g, parts.trained, gradient))
    np.testing.assert_allclose(means["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(means["error"], value, rtol=1e-6)
    np.testing.assert_allclose(means["gradient_norm"], optax.tree.norm(gradient), rtol=1e-6)
    np.testing.assert_allclose(state.parts.variables["mean"], 0.1 * batch()["x"].mean(0), rtol=1e-6)


def test_what_holds_still_holds_still(alone):
    for state, _ in alone.values():
        assert state.parts.fixed in ({"offset": np.float32(0.2)}, {})


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_only_the_counters(poison):
    task = replace(REGRESSION, mesh=Mesh(data=2))
    mesh = task.mesh.build()
    update, state = update_of(task), fresh(task, mesh)
    state, _ = update(state, shard_batch(batch(), mesh))
    before = jax.device_get(state)
    bad = batch() | {"y": np.where(np.arange(ROWS) == 5, poison, batch()["y"]).astype(np.float32)}
    for count in (1, 2):
        state, told = update(state, shard_batch(bad, mesh))
        assert told.skipped_in_a_row == count
        assert all(float(weight) == float(total) == 0 for total, weight in told.means.values())
    after = jax.device_get(state)
    chex.assert_trees_all_equal(before._replace(step=after.step, skipped_in_a_row=after.skipped_in_a_row), after)
    assert (after.step, after.updates["loss"], after.skipped_in_a_row) == (3, 1, 2)
    state, told = update(state, shard_batch(batch(), mesh))
    assert told.skipped_in_a_row == 0
    assert int(state.updates["loss"]) == 2
    assert not np.array_equal(state.parts.trained["w"], before.parts.trained["w"])


@dataclass(frozen=True, kw_only=True)
class Careless(Regression):
    """A system whose author has forgotten something."""

    forgotten: str

    def loss(self, parts, batch, keys, totals):
        sums = super().loss(parts, batch, keys, totals)
        error, weight = sums.metrics["error"]
        return {
            "a sum over rows": sums._replace(losses={"loss": batch["y"] * sums.losses["loss"]}),
            "a player": sums._replace(losses={"critic": sums.losses["loss"]}),
            "a weight": sums._replace(metrics={"error": error}),
            "a sum of a metric": sums._replace(metrics={"error": (error * batch["y"], weight)}),
        }.get(self.forgotten, sums)

    def advance(self, parts, statistics):
        variables = super().advance(parts, statistics)
        return {
            "a variable": {"mean": variables["mean"]},
            "a shape": variables | {"mean": variables["mean"][:2]},
            "a type": variables | {"steps": variables["steps"].astype(jnp.int32)},
        }.get(self.forgotten, variables)


@pytest.mark.parametrize(
    ("forgotten", "sentence"),
    [
        ("a sum over rows", "the loss of the player 'loss' is a scalar"),
        ("a player", r"losses are those of \['critic'\], and the players are \['loss'\]"),
        ("a weight", "the metric 'error' is a pair of scalars"),
        ("a sum of a metric", "the metric 'error' is a pair of scalars"),
        ("a variable", "advance keeps the names"),
        ("a shape", "advance keeps the names"),
        ("a type", "advance keeps the names"),
    ],
)
def test_what_a_task_forgets_is_named_before_anything_is_compiled(forgotten, sentence):
    task = Careless(forgotten=forgotten, mesh=Mesh(data=1))
    mesh = task.mesh.build()
    with pytest.raises(TypeError, match=sentence):
        jax.eval_shape(make_update(task, mesh), initial_state(task, jax.random.key(0)), batch())


def test_the_step_compiles_once():
    *_, update = trained(replace(REGRESSION, mesh=Mesh(data=2)), steps=4)
    assert update._cache_size() == 1


def test_the_state_is_donated():
    task = replace(REGRESSION, mesh=Mesh(data=1))
    mesh = task.mesh.build()
    update, state = update_of(task), fresh(task, mesh)
    update(state, shard_batch(batch(), mesh))
    assert state.parts.trained["w"].is_deleted()


def test_an_average_warms_up_by_the_moves_of_its_own_player():
    """Not by steps, of which a player idles on some: by hand, with decay (1 + n) / (10 + n) at its move n."""
    task = Game(every=3)
    mesh = task.mesh.build()
    update, state = update_of(task), fresh(task, mesh)
    average = jax.device_get(state.ema["generator"])
    for step in range(7):
        state, _ = update(state, shard_batch(batch(), mesh))
        if step % 3 == 0:
            decay, moved = (1 + step // 3) / (10 + step // 3), jax.device_get(state.parts.trained["generator"])
            average = jax.tree.map(lambda a, p, decay=decay: decay * a + (1 - decay) * p, average, moved)
    assert_close(jax.device_get(state.ema["generator"]), average)


def test_without_an_average_there_is_none_and_samples_are_drawn_with_the_parameters():
    state, _, _ = trained(with_train(REGRESSION, ema_decay=None), steps=2)
    assert state.ema is None
    assert state.averaged.trained is state.parts.trained


@dataclass(frozen=True, kw_only=True)
class Spy(Regression):
    """Tells the noise of its first and last row."""

    def loss(self, parts, batch, keys, totals):
        noise = jax.vmap(jax.random.uniform)(keys)
        one = jnp.ones(())
        return Sums({"loss": 0.0 * parts.trained["w"].sum()}, {"first": (noise[0], one), "last": (noise[-1], one)},
                    {"x": batch["x"].sum(0), "rows": one})  # fmt: skip


def test_steps_and_samples_have_random_numbers_of_their_own():
    """The same batch gives another loss at another step, and equal rows another noise each."""
    seen = []
    for steps in (1, 2, 3):
        _, means, _ = trained(replace(Spy(), mesh=Mesh(data=1)), steps=steps)
        seen += [means["first"], means["last"]]
    assert len(set(seen)) == 6


# -------------------------------------------------------------------- several players


def test_a_player_that_moves_every_third_step_holds_still_on_the_others():
    task = Game(every=3)
    mesh = task.mesh.build()
    update, state = update_of(task), fresh(task, mesh)
    moved = {"critic": [], "generator": []}
    for _ in range(7):
        before = jax.device_get(state)
        state, told = update(state, shard_batch(batch(), mesh))
        after = jax.device_get(state)
        for name in moved:
            held = [part[name] for part in (before.parts.trained, before.ema, before.optimizer, before.updates)]
            now = [part[name] for part in (after.parts.trained, after.ema, after.optimizer, after.updates)]
            same = all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (held, now)), strict=True))
            assert bool(told.means[f"loss/{name}"][1]) == (not same)
            moved[name].append(not same)
    assert moved == {"critic": [True] * 7, "generator": [True, False, False, True, False, False, True]}
    assert update._cache_size() == 1


def test_a_player_that_idles_costs_nothing():
    """Where the generator idles, what only its loss needs is not in the program: fewer flops, by the compiler."""

    def flops(task, movers):
        from genjax.training.players import gradients

        parts, keys = task.init(None), jax.random.split(jax.random.key(0), ROWS)

        def losses(trained):
            sums = task.loss(parts._replace(trained=trained), batch(), keys, {"rows": 8.0})
            return sums.losses, ()

        compiled = jax.jit(lambda trained: gradients(losses, trained, movers)[0]).lower(parts.trained).compile()
        return compiled.cost_analysis()["flops"]

    both, critic, generator = (flops(Game(), m) for m in (("critic", "generator"), ("critic",), ("generator",)))
    assert critic < both
    assert generator < both < critic + generator  # and one forward pass serves both


# -------------------------------------------------------------------- losses that couple rows


@dataclass(frozen=True, kw_only=True)
class Coupled(Regression):
    """The variance of the guesses over the whole batch: no sum over rows."""

    couples_rows: ClassVar[bool] = True

    def loss(self, parts, batch, keys, totals):
        guess = batch["x"] @ parts.trained["w"]
        return Sums({"loss": jnp.var(guess)}, {}, {"x": batch["x"].sum(0), "rows": jnp.float32(len(guess))})


@pytest.mark.parametrize("devices", [2, 4])
def test_a_loss_that_couples_rows_sees_the_global_batch(devices):
    one = trained(replace(Coupled(), mesh=Mesh(data=1)))
    assert_close(one[:2], trained(replace(Coupled(), mesh=Mesh(data=devices)))[:2])
    _, means, _ = trained(replace(Coupled(), mesh=Mesh(data=devices)), steps=1)
    assert means["loss"] == pytest.approx(np.var(batch()["x"] @ np.array([0.5, -1.0, 2.0])), rel=1e-5)


# -------------------------------------------------------------------- float16


def fp16(task=REGRESSION):
    return with_train(task, precision="fp16")


def test_scaling_the_loss_changes_no_gradient():
    plain, scaled = trained(REGRESSION), trained(fp16())
    assert_close(plain[0].parts, scaled[0].parts)
    assert scaled[1]["loss_scale"] == FIRST
    assert int(scaled[0].scale.clean) == 10


@dataclass(frozen=True, kw_only=True)
class Overflowing(Regression):
    """Its gradient is a float16 number that is too large when the loss is scaled; the loss itself is finite."""

    slope: float = 8.0

    def loss(self, parts, batch, keys, totals):
        w = (parts.trained["w"].astype(jnp.float16) * jnp.float16(self.slope)).astype(jnp.float32)
        return Sums({"loss": w.sum()}, {}, {"x": batch["x"].sum(0), "rows": jnp.float32(ROWS)})


def test_an_overflow_halves_the_scale_changes_nothing_and_is_not_counted_as_skipped():
    task = fp16(replace(Overflowing(), mesh=Mesh(data=4)))
    mesh = task.mesh.build()
    update, state = update_of(task), fresh(task, mesh)
    scales, updates = [], []
    for _ in range(6):
        state, told = update(state, shard_batch(batch(), mesh))
        scales.append(float(state.scale.value))
        updates.append(int(state.updates["loss"]))
        assert told.skipped_in_a_row == 0
    # 8 * scale <= 65504 holds from 2^12 on.
    assert scales == [2.0**15, 2.0**14, 2.0**13, 2.0**12, 2.0**12, 2.0**12]
    assert updates == [0, 0, 0, 0, 1, 2]


@dataclass(frozen=True, kw_only=True)
class Steep(Regression):
    """Its loss is finite and its gradient is not, whatever the scale."""

    def loss(self, parts, batch, keys, totals):
        cusp = jnp.sqrt(0 * parts.trained["w"].sum())
        return Sums({"loss": cusp}, {}, {"x": batch["x"].sum(0), "rows": jnp.float32(ROWS)})


def test_an_overflow_at_a_scale_of_one_is_counted_as_any_bad_step():
    """There is nothing left to lower: a run that overflows for ever must give up."""
    task = fp16(Steep(mesh=Mesh(data=1)))
    mesh = task.mesh.build()
    update, state = update_of(task), fresh(task, mesh)
    state = jax.device_put(state._replace(scale=state.scale._replace(value=jnp.float32(2))), replicated(mesh))
    skipped = []
    for _ in range(3):
        state, told = update(state, shard_batch(batch(), mesh))
        skipped.append(int(told.skipped_in_a_row))
    assert skipped == [0, 1, 2]
    assert float(state.scale.value) == 1


def test_many_clean_steps_double_the_scale():
    task = fp16()
    mesh = task.mesh.build()
    update, state = update_of(task), fresh(task, mesh)
    state = state._replace(scale=state.scale._replace(clean=jnp.int32(PATIENCE - 1)))
    state, _ = update(jax.device_put(state, replicated(mesh)), shard_batch(batch(), mesh))
    assert (float(state.scale.value), int(state.scale.clean)) == (2 * FIRST, 0)


def test_the_default_optimizer_is_adamw():
    assert isinstance(Regression().players()["loss"].optimizer, AdamW)
