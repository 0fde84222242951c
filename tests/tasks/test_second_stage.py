"""Laws of second stages, whatever draws: conditions that are dropped, a first stage that stays."""

from dataclasses import dataclass, fields, replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import Digits
from genjax.errors import InputError
from genjax.parallel.rules import unbox
from genjax.tasks import second_stage
from genjax.tasks.autoregressive import Autoregressive
from genjax.tasks.token_conditions import CaptionTokens, ClassToken, StartToken
from tests.tasks.second_stages import AR, AR_SUM, MASKED, MASKED_SUM

TASKS = {"ar": AR, "ar residual": AR_SUM, "masked": MASKED, "masked residual": MASKED_SUM}


@pytest.fixture(scope="module")
def parts():
    found = {}

    def of(name):
        if name not in found:
            found[name] = unbox(jax.jit(TASKS[name].init)(jax.random.key(0)))
        return found[name]

    return of


def batch_of(task, count=4):
    rows = [task.prepare(task.data.source("train")[i], np.random.default_rng(0)) for i in range(count)]
    return {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("name", TASKS)
def test_all_that_is_trained_is_the_network_and_it_has_gradients(parts, name):
    task, batch = TASKS[name], batch_of(TASKS[name])
    keys = jax.random.split(jax.random.key(0), 4)

    def loss(trained, fixed):
        return task.loss(parts(name)._replace(trained=trained, fixed=fixed), batch, keys, task.totals(batch)).losses[
            "loss"
        ]

    value, gradients = jax.jit(jax.value_and_grad(loss))(parts(name).trained, parts(name).fixed)
    assert np.isfinite(value) and set(parts(name).trained) == {"model"}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["model"]["embed"]))


def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_rows(parts):
    batch, keys = batch_of(AR), jax.random.split(jax.random.key(0), 4)
    whole = AR.loss(parts("ar"), batch, keys, {"rows": 4.0}).losses["loss"]
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        rows = {name: array[half] for name, array in batch.items()}
        halves.append(AR.loss(parts("ar"), rows, keys[half], {"rows": 4.0}).losses["loss"])
    np.testing.assert_allclose(whole, sum(halves), rtol=1e-6)


def test_a_condition_that_is_always_dropped_is_never_heard(parts):
    batch, keys = batch_of(AR), jax.random.split(jax.random.key(0), 4)
    other = batch | {"prefix": (batch["prefix"] + 1) % 10}

    def losses(dropout):
        task = replace(AR, condition=ClassToken(dropout=dropout))
        return [float(task.loss(parts("ar"), each, keys, {"rows": 4.0}).losses["loss"]) for each in (batch, other)]

    assert losses(1.0)[0] == losses(1.0)[1] != losses(0.0)[0] != losses(0.0)[1]


def test_pictures_are_those_that_the_first_stage_draws_of_the_ids(parts):
    ids = AR.draw(parts("ar"), ["one", "two"], seed=0)
    first = AR.first_stage.parts(parts("ar").fixed["first_stage"])
    np.testing.assert_array_equal(
        AR.sample(parts("ar"), ["one", "two"], seed=0), AR.tokeniser.drawn_from_ids(first, ids)
    )
    chex.assert_shape(AR.sample(parts("ar"), ["one"], seed=0), (1, 8, 8, 1))


def test_guidance_of_a_condition_that_is_never_dropped_is_refused():
    with pytest.raises(InputError, match="a condition of StartToken is never dropped in training here: only 1"):
        replace(AR, condition=StartToken()).check_guidance(2.0)


class Watched(Autoregressive):
    """Keeps the keys that it was given."""

    def losses(self, parts, prefix, ids, keys, *, training=True):
        GIVEN.append(np.asarray(jax.random.key_data(keys)))
        return jnp.zeros(len(ids))


GIVEN = []


def test_conditions_are_dropped_by_other_keys_than_the_loss_draws_with(parts, monkeypatch):
    task = Watched(**{each.name: getattr(AR, each.name) for each in fields(AR)})
    used, bernoulli = [], jax.random.bernoulli

    def watched(key, **options):
        jax.debug.callback(lambda data: used.append(np.asarray(data)), jax.random.key_data(key))
        return bernoulli(key, **options)

    monkeypatch.setattr(jax.random, "bernoulli", watched)
    task.loss(parts("ar"), batch_of(AR), jax.random.split(jax.random.key(0), 4), {"rows": 4.0})
    jax.effects_barrier()
    dropped, drawn = {tuple(key) for key in used}, {tuple(key) for key in GIVEN[-1]}
    assert len(dropped) == len(drawn) == 4
    assert not dropped & drawn


class Numbered(Autoregressive):
    """Says of each row its number in its block, and of training nothing."""

    def losses(self, parts, prefix, ids, keys, *, training=True):
        return jnp.arange(len(ids), dtype=jnp.float32) + (jnp.nan if training else 0)


def test_validation_is_the_mean_over_held_out_pictures_without_what_is_for_training_alone(parts):
    task = Numbered(**{each.name: getattr(AR, each.name) for each in fields(AR)})
    np.testing.assert_allclose(task.validate(parts("ar"))["validation_loss"], 31.5)  # of 0 to 63 in each block of 64
    rows = [task.prepare(task.data.source("test")[i], np.random.default_rng(0)) for i in range(3)]
    few = replace(AR, data=Few())
    batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    by_hand = AR.losses(
        parts("ar"), batch["prefix"], AR.codes_of(parts("ar"), batch), jax.random.split(jax.random.key(0), 3)
    )
    np.testing.assert_allclose(few.validate(parts("ar"))["validation_loss"], by_hand.mean(), rtol=1e-5)


@dataclass(frozen=True)
class Few(Digits):
    """Three held-out digits."""

    def source(self, split):
        return [super(Few, self).source(split)[i] for i in range(3)]


@pytest.mark.parametrize("change", [{"words": 1}])
def test_a_caption_of_the_data_that_is_too_long_is_refused_before_it_trains(change):
    condition = CaptionTokens(rows=8, **change)
    with pytest.raises(InputError, match="this text encoder takes at most 1"):
        replace(AR, condition=condition, model=replace(AR.model, vocabulary=6 + 16, positions=20)).check()


@pytest.mark.parametrize("name", ["ar", "masked"])
def test_one_compilation_serves_every_seed_word_and_guidance(parts, name):
    task, sampler = TASKS[name], replace(TASKS[name].sampler, guidance=1.7)
    task.draw(parts(name), ["one", "two"], seed=0, sampler=sampler)
    before = second_stage._drawn._cache_size()
    task.draw(parts(name), ["three", "one"], seed=1, sampler=replace(sampler, guidance=4.0))
    assert second_stage._drawn._cache_size() == before
