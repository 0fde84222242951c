"""Laws of the masked second stage: what is masked is named, and what is known is seen."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from genjax.errors import InputError
from genjax.language.masked_decoding import MASKED as UNKNOWN
from genjax.language.masked_decoding import draw_masks
from genjax.tasks.code_sampling import MaskedSampler
from genjax.tasks.masked_generation import MaskedGeneration
from tests.tasks.second_stages import MASKED, MASKED_SUM

WORDS = ["zero", "seven", "three"]
TASKS = {"one": MASKED, "residual": MASKED_SUM}


@pytest.fixture(scope="module")
def parts():
    """Of each task, its parameters moved away from where they begin."""
    found = {}
    for name, task in TASKS.items():
        fresh = jax.jit(task.init)(jax.random.key(0))
        flat, back = ravel_pytree(fresh.trained)
        found[name] = fresh._replace(trained=back(flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape)))
    return found


class Table(MaskedGeneration):
    """Says the same of every row, and what it was shown."""

    def logits(self, trained, prefix, known):
        return jnp.broadcast_to(trained["table"], (len(known), *trained["table"].shape)) + 0.01 * known[..., None]


def test_the_loss_is_the_mean_over_masked_places_of_what_is_wanted_there():
    task = Table(**{each.name: getattr(MASKED, each.name) for each in fields(MASKED)})
    table, ids = jax.random.normal(jax.random.key(0), (16, 6)), jax.random.randint(jax.random.key(1), (3, 16), 0, 6)
    keys = jax.random.split(jax.random.key(2), 3)
    hidden, log_p = np.asarray(draw_masks(keys, 16)), np.asarray(jax.nn.log_softmax(table))
    parts = jax.eval_shape(MASKED.init, jax.random.key(0))._replace(trained={"table": table})
    for training, smoothed in ((False, 0.0), (True, 0.1)):
        by_hand = [
            -np.mean(
                [(1 - smoothed) * log_p[i, ids[b, i]] + smoothed * log_p[i].mean() for i in np.flatnonzero(hidden[b])]
            )
            for b in range(3)
        ]
        losses = task.losses(parts, jnp.zeros((3, 1), jnp.int32), ids, keys, training=training)
        np.testing.assert_allclose(losses, by_hand, rtol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_every_place_sees_all_that_is_known_and_no_masked_id(parts, name):
    task, trained = TASKS[name], parts[name].trained
    ids = jax.random.randint(jax.random.key(2), (1, task.ids), 0, task.size)
    known = ids.at[0, :4].set(UNKNOWN)
    before = task.logits(trained, jnp.array([[3]]), known)
    assert before.shape == (1, task.ids, task.size)
    after = task.logits(trained, jnp.array([[3]]), known.at[0, -1].set((ids[0, -1] + 1) % task.size))
    assert np.abs(before - after).max(axis=(0, 2)).min() > 1e-5
    other = task.logits(trained, jnp.array([[4]]), known)
    assert np.abs(before - other).max(axis=(0, 2)).min() > 1e-5


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_depends_on_the_seed_its_number_and_its_words_alone(parts, name):
    task, sampler = TASKS[name], MaskedSampler(steps=3, guidance=2.0)
    together = task.draw(parts[name], WORDS, seed=5, sampler=sampler)
    assert together.shape == (3, *task.tokeniser.id_shape)
    assert together.min() >= 0 and together.max() < task.size
    np.testing.assert_array_equal(together, task.draw(parts[name], WORDS, seed=5, sampler=sampler, batch_size=2))
    assert (task.draw(parts[name], WORDS, seed=6, sampler=sampler) != together).any()


def test_a_guidance_of_almost_one_is_none_and_more_leads_elsewhere(parts):
    def drawn(guidance):
        return MASKED.draw(parts["one"], WORDS, seed=0, sampler=MaskedSampler(steps=4, guidance=guidance))

    np.testing.assert_array_equal(drawn(1.0), drawn(1.0000001))
    assert (drawn(1.0) != drawn(6.0)).any()


def test_noise_in_the_choice_of_places_and_filters_reach_what_is_drawn(parts):
    def drawn(**options):
        return MASKED.draw(parts["one"], WORDS, seed=0, sampler=MaskedSampler(steps=4, **options))

    assert (drawn(choice_temperature=0.0) != drawn(choice_temperature=50.0)).any()
    np.testing.assert_array_equal(drawn(top_k=1), drawn(temperature=0.0))
    assert (drawn(top_k=1) != drawn()).any()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is a share"),
        ({"model": replace(MASKED.model, causal=True)}, "take model.causal False"),
        (
            {"model": replace(MASKED.model, vocabulary=17)},
            "18 tokens are there: 6 of codes, 11 of the condition, 1 of a",
        ),
        ({"sampler": MaskedSampler(steps=17)}, "from 1 to 16, the number of places, not 17"),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(MASKED, **change).check()
