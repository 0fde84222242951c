"""Laws of decoding by masks: how many are masked again, what stays, and what each step sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from genjax.errors import InputError
from genjax.language.decoding import TokenSampler
from genjax.language.masked_decoding import (
    MASKED,
    cosine_share,
    draw_masks,
    high_share,
    masked_counts,
    reveal,
    reveal_vectors,
)

ANY = TokenSampler()


@pytest.mark.parametrize(
    ("places", "counts"),
    [(256, [251, 236, 212, 181, 142, 97, 49, 1]), (64, [62, 59, 53, 45, 35, 24, 12, 1])],
)
def test_the_counts_are_those_of_maskgit(places, counts):
    assert masked_counts(places, 8).tolist() == counts


@pytest.mark.parametrize("places", [1, 2, 16, 49])
def test_in_as_many_steps_as_places_each_step_keeps_one_more(places):
    counts = masked_counts(places, places).tolist()
    assert counts == [*range(places - 1, 0, -1), 1]


@pytest.mark.parametrize("steps", [0, 17])
def test_more_steps_than_places_and_none_are_refused(steps):
    with pytest.raises(InputError, match=f"from 1 to 16, the number of places, not {steps}"):
        masked_counts(16, steps)


def seen_by(network, keys, places, **options):
    """What the network is given at each step, and the tokens at the end."""
    seen = []

    def watched(known):
        seen.append(np.asarray(known))
        return network(known)

    with jax.disable_jit():
        tokens = reveal(watched, ANY, keys, places, **options)
    return seen, np.asarray(tokens)


def test_each_step_sees_what_it_should_and_what_is_known_stays():
    table = jax.random.normal(jax.random.key(1), (12, 5))
    seen, tokens = seen_by(lambda known: jnp.stack([table] * len(known)), jax.random.split(jax.random.key(0), 3), 12,
                           steps=4)  # fmt: skip
    masked = [(known == MASKED).sum(axis=1).tolist() for known in seen]
    assert masked == [[12] * 3, *([int(n)] * 3 for n in masked_counts(12, 4)[:-1])]
    for known in seen:
        assert ((known == MASKED) | (known == tokens)).all()
    assert (tokens >= 0).all() and (tokens < 5).all()


def test_without_noise_the_surest_places_stay():
    sure = jnp.arange(6.0)  # place 5 is surest
    logits = jnp.stack([sure, jnp.zeros(6)], axis=-1) * 10
    seen, _ = seen_by(lambda known: logits[None], jax.random.split(jax.random.key(0), 1), 6, steps=3, temperature=0.0)
    assert [np.flatnonzero(known[0] == MASKED).tolist() for known in seen[1:]] == [[0, 1, 2, 3, 4], [0, 1, 2]]


def test_in_one_step_each_place_is_drawn_by_its_own_probabilities():
    probabilities = jnp.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    rows = 4000
    tokens = reveal(lambda known: jnp.broadcast_to(jnp.log(probabilities), (rows, 2, 3)), ANY,
                    jax.random.split(jax.random.key(0), rows), 2, steps=1)  # fmt: skip
    shares = np.stack([np.bincount(tokens[:, place], minlength=3) for place in (0, 1)]) / rows
    errors = np.sqrt(probabilities * (1 - probabilities) / rows)
    assert (np.abs(shares - probabilities) < 4 * errors).all()


def test_a_row_depends_on_its_key_alone():
    table, keys = jax.random.normal(jax.random.key(1), (9, 4)), jax.random.split(jax.random.key(0), 3)

    def drawn(keys):
        return reveal(lambda known: jnp.stack([table] * len(known)), ANY, keys, 9, steps=3)

    np.testing.assert_array_equal(drawn(keys), jnp.concatenate([drawn(keys[i : i + 1]) for i in range(3)]))


def test_the_share_of_masks_in_training_is_the_cosine_of_a_uniform_number():
    share = draw_masks(jax.random.split(jax.random.key(0), 4000), 64).mean(axis=1)
    assert share.min() >= 1 / 64
    # Of cos(pi u / 2) the mean is 2 / pi and the mean square 1 / 2; rounding up adds half a place.
    np.testing.assert_allclose(share.mean(), 2 / np.pi + 0.5 / 64, atol=4 * np.sqrt((0.5 - 4 / np.pi**2) / 4000))
    # Every place is masked as often as another.
    places = draw_masks(jax.random.split(jax.random.key(1), 4000), 8).mean(axis=0)
    assert np.ptp(places) < 0.06


def drawn_at_each_step(draw, rows, places, width, **options):
    """What `draw` is given at each step, and the vectors at the end."""
    seen = []

    def watched(*given):
        jax.debug.callback(
            lambda *given: seen.append([np.asarray(each) for each in given]),
            *given[:-1],
            jax.random.key_data(given[-1]),
            ordered=True,
        )
        return draw(*given)

    vectors = reveal_vectors(watched, jax.random.split(jax.random.key(0), rows), places, width, **options)
    jax.effects_barrier()
    return seen, np.asarray(vectors)


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_every_vector_is_drawn_once_for_its_place_and_stays(steps):
    def draw(known, hidden, which, share, keys):
        return jnp.stack([which, jnp.ones_like(which)], axis=-1).astype(float)

    seen, vectors = drawn_at_each_step(draw, 3, 12, 2, steps=steps)
    np.testing.assert_array_equal(vectors, [[[i, 1] for i in range(12)]] * 3)
    counts = [12, *masked_counts(12, steps)[:-1].tolist(), 0]
    orders = []
    for (known, hidden, which, share, _), before, after in zip(seen, counts[:-1], counts[1:], strict=True):
        assert (hidden.sum(axis=1) == before).all() and abs(share - (1 - after / 12)) < 1e-6
        np.testing.assert_array_equal(known, np.where(hidden[..., None], 0, vectors))
        orders.append(which[:, : before - after])
    together = np.concatenate(orders, axis=1)
    assert (np.sort(together, axis=1) == np.arange(12)).all()
    assert steps == 1 or len({tuple(row) for row in together}) == 3
    drawn_with = {tuple(key) for *_, keys in seen for key in keys}
    assert len(drawn_with) == 3 * steps


def test_a_row_of_vectors_depends_on_its_own_key_alone():
    def draw(known, hidden, which, share, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (which.shape[1], 2)))(keys)
        return noise + known.sum(axis=1, keepdims=True)

    keys = jax.random.split(jax.random.key(3), 3)
    whole = reveal_vectors(draw, keys, 7, 2, steps=3)
    np.testing.assert_array_equal(reveal_vectors(draw, keys[1:2], 7, 2, steps=3)[0], whole[1])


def test_the_share_of_masked_vectors_is_a_truncated_normal():
    shares = np.asarray(jax.vmap(high_share)(jax.random.split(jax.random.key(0), 4000)))
    assert shares.min() >= 0.7 and shares.max() <= 1
    law = scipy.stats.truncnorm(-1.2, 0, loc=1, scale=0.25)
    assert scipy.stats.kstest(shares, law.cdf).pvalue > 0.01
    hidden = np.asarray(draw_masks(jax.random.split(jax.random.key(0), 400), 16, high_share))
    assert set(hidden.sum(axis=1)) == set(range(12, 17))


@pytest.mark.parametrize(("share", "whole"), [(cosine_share, 2 / np.pi * np.arccos(15 / 16)), (high_share, None)])
def test_whole_rows_are_masked_as_often_as_shares_round_up_to_them(share, whole):
    """Sampling begins at a row of which nothing is known."""
    if whole is None:
        law = scipy.stats.truncnorm(-1.2, 0, loc=1, scale=0.25)
        whole = 1 - law.cdf(15 / 16)
    hidden = np.asarray(draw_masks(jax.random.split(jax.random.key(0), 4000), 16, share))
    assert abs(hidden.all(axis=1).mean() - whole) < 4 * np.sqrt(whole * (1 - whole) / 4000)
