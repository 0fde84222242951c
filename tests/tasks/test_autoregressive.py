"""Laws of the autoregressive second stage: each id by those before it, drawn as it was scored."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from genjax.errors import InputError
from genjax.language.logits_guidance import guided_logits
from genjax.models.decoder import Decoder
from genjax.parallel.rules import unbox
from genjax.runs.parts import Parts
from genjax.tasks.autoregressive import Autoregressive
from genjax.tasks.code_sampling import AutoregressiveSampler
from genjax.tasks.token_conditions import StartToken
from tests.tasks.second_stages import AR, AR_SUM

LLAMA = replace(
    AR, model=Decoder(vocabulary=17, width=8, depth=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_width=8)
)
TASKS = {"gpt": AR, "llama": LLAMA, "residual": AR_SUM}
WORDS = ["zero", "seven", "three"]
GREEDY = AutoregressiveSampler(temperature=0.0)


@pytest.fixture(scope="module")
def parts():
    """Of each task, its parameters moved away from where they begin, where all logits are alike."""
    found = {}

    def of(name):
        if name not in found:
            fresh = jax.jit(TASKS[name].init)(jax.random.key(0))
            flat, back = ravel_pytree(fresh.trained)
            found[name] = fresh._replace(trained=back(flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape)))
        return found[name]

    return of


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_is_drawn_with_a_cache_is_the_best_of_the_full_pass(parts, name, guidance):
    task = TASKS[name]
    ids = task.draw(parts(name), WORDS, seed=0, sampler=replace(GREEDY, guidance=guidance))
    assert ids.shape == (3, *task.tokeniser.id_shape)
    flat, prefix = jnp.asarray(ids.reshape(3, -1)), jnp.asarray(task.condition.asked(WORDS, task.data))
    both = jnp.concatenate([prefix, jnp.full_like(prefix, 10)])
    logits = guided_logits(task.logits(parts(name).trained, both, jnp.concatenate([flat, flat])), guidance)
    assert logits.shape == (3, task.ids, task.size)
    np.testing.assert_array_equal(flat, logits.argmax(axis=-1))
    assert len(np.unique(flat)) > 1


@pytest.mark.parametrize("name", TASKS)
def test_an_id_is_scored_by_those_before_it_alone(parts, name):
    task = TASKS[name]
    ids = jax.random.randint(jax.random.key(2), (1, task.ids), 0, task.size)
    before = task.logits(parts(name).trained, jnp.array([[3]]), ids)
    after = task.logits(parts(name).trained, jnp.array([[3]]), ids.at[0, 5].set((ids[0, 5] + 1) % task.size))
    np.testing.assert_allclose(before[:, :6], after[:, :6], atol=1e-5)
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 1e-3


def test_the_loss_is_the_mean_negative_log_likelihood_of_the_ids(parts):
    ids, prefix = jax.random.randint(jax.random.key(2), (2, 16), 0, 6), jnp.array([[1], [10]])
    log_p = jax.nn.log_softmax(AR.logits(parts("gpt").trained, prefix, ids))
    by_hand = [-np.mean([log_p[b, i, ids[b, i]] for i in range(16)]) for b in range(2)]
    np.testing.assert_allclose(AR.losses(parts("gpt"), prefix, ids, jax.random.split(jax.random.key(0))), by_hand,
                               rtol=1e-5)  # fmt: skip


def test_a_window_of_the_pictures_size_draws_what_no_window_draws(parts):
    for sampler in (AutoregressiveSampler(), AutoregressiveSampler(guidance=2.0, top_k=4)):
        plain = AR.draw(parts("gpt"), WORDS, seed=4, sampler=sampler)
        through = AR.draw(parts("gpt"), WORDS, seed=4, sampler=replace(sampler, grid=(4, 4)))
        np.testing.assert_array_equal(plain, through)


def test_a_larger_grid_gives_a_larger_picture(parts):
    images = AR.sample(parts("gpt"), WORDS[:2], seed=0, sampler=AutoregressiveSampler(grid=(5, 6)))
    assert images.shape == (2, 10, 12, 1)


@pytest.mark.parametrize("name", ["gpt", "residual"])
def test_a_sample_depends_on_the_seed_its_number_and_its_words_alone(parts, name):
    task = TASKS[name]
    together = task.draw(parts(name), WORDS, seed=5)
    np.testing.assert_array_equal(together, task.draw(parts(name), WORDS, seed=5, batch_size=2))
    assert (task.draw(parts(name), WORDS, seed=6) != together).any()


def test_corruption_changes_what_is_read_in_training_alone_and_never_what_is_wanted(parts):
    corrupted = replace(AR, corruption=0.1)
    ids, prefix, keys = jnp.zeros((2, 16), jnp.int32), jnp.array([[1], [2]]), jax.random.split(jax.random.key(0))
    plain = AR.losses(parts("gpt"), prefix, ids, keys)
    np.testing.assert_array_equal(corrupted.losses(parts("gpt"), prefix, ids, keys, training=False), plain)
    assert np.abs(corrupted.losses(parts("gpt"), prefix, ids, keys) - plain).max() > 1e-3
    # A head that wants id 0 everywhere finds it wanted, whatever is read.
    sure = jax.tree.map(jnp.zeros_like, unbox(parts("gpt").trained))
    sure["model"]["head"]["kernel"] = sure["model"]["head"]["kernel"].at[:, 0].set(1.0)
    sure["model"]["norm"] = jax.tree.map(lambda leaf: jnp.full_like(leaf, 100.0), sure["model"]["norm"])
    wanted = corrupted.losses(parts("gpt")._replace(trained=sure), prefix, ids, keys)
    np.testing.assert_allclose(wanted, 0, atol=1e-5)


class Watched(Autoregressive):
    """Keeps what it was shown."""

    def logits(self, trained, prefix, ids):
        SHOWN.append(np.asarray(ids))
        return jnp.zeros((*ids.shape, self.size))


SHOWN = []


def test_as_many_ids_are_corrupted_as_it_says():
    task = Watched(**{each.name: getattr(AR, each.name) for each in fields(AR)} | {"corruption": 0.1})
    count = 4000
    ids, keys = jnp.zeros((count, 16), jnp.int32), jax.random.split(jax.random.key(0), count)
    task.losses(Parts({}), jnp.zeros((count, 1), jnp.int32), ids, keys)
    changed = 0.1 * 5 / 6  # one of six draws is the id that was there
    assert abs((SHOWN[-1] != 0).mean() - changed) < 4 * np.sqrt(changed * (1 - changed) / ids.size)


def test_it_computes_in_the_precision_of_the_run_and_scores_in_float32(parts):
    coarse = replace(AR, train=replace(AR.train, precision="bf16"))
    ids, prefix = jax.random.randint(jax.random.key(2), (2, 16), 0, 6), jnp.array([[1], [10]])
    fine, rough = (task.logits(parts("gpt").trained, prefix, ids) for task in (AR, coarse))
    assert rough.dtype == jnp.float32
    assert 1e-4 < np.abs(fine - rough).max() < 0.2


@pytest.mark.parametrize(
    ("task", "sampler", "sentence"),
    [
        (AR, AutoregressiveSampler(grid=(3, 9)), "sampler.grid is 3x9 ids, and the window of this run is 4x4"),
        (AR_SUM, AutoregressiveSampler(grid=(9, 9)), "of one id for each place, and this first stage has 2"),
        (replace(AR, condition=StartToken()), AutoregressiveSampler(guidance=2.0), "never dropped in training here"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused(task, sampler, sentence):
    with pytest.raises(InputError, match=sentence):
        task.check_sampler(sampler)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"corruption": 1.0}, "corruption is a share of the ids"),
        ({"model": replace(AR.model, causal=False)}, "cannot see later ones"),
        (
            {"model": replace(AR.model, vocabulary=18)},
            "model.vocabulary is 18, and 17 tokens are there: 6 of codes, 11",
        ),
        ({"model": replace(AR.model, positions=15)}, "a row of 16 tokens is longer than the 15 positions"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(AR, **change).check()
