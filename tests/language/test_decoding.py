"""Laws of decoding: filters by their definitions, frequencies of draws, and a loop that changes nothing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax.linen import meta
from jax.tree_util import Partial

from genjax.errors import InputError
from genjax.keys import row_keys
from genjax.language.decoding import (
    TokenSampler,
    advance,
    generate,
    min_p,
    prefill,
    temperature,
    top_k,
    top_p,
)
from genjax.models.decoder import Decoder

LOGITS = (2 * np.random.default_rng(0).normal(size=(6, 11))).astype(np.float32)
TIED = np.array([[1.0, 3.0, 3.0, 0.0, 3.0, 1.0, -2.0]], np.float32)

MODEL = Decoder(vocabulary=13, width=16, depth=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_width=24)
PROMPTS = np.array([[1, 2, 3, 4, 5], [6, 5, 0, 0, 0], [3, 0, 0, 0, 0]], np.int32)
LENGTHS = np.array([5, 2, 1], np.int32)
SAMPLER = TokenSampler()


def softmax(logits):
    logits = np.asarray(logits)
    weights = np.exp(np.float64(logits) - np.max(logits))
    return weights / weights.sum()


def kept(filtered, logits) -> set[int]:
    """Which tokens can still come; the logits of those are as they were."""
    stays = np.isfinite(filtered)
    np.testing.assert_array_equal(np.asarray(filtered)[stays], logits[stays])
    assert (np.asarray(filtered)[~stays] == -np.inf).all()
    return set(np.flatnonzero(stays).tolist())


@pytest.mark.parametrize("k", [1, 2, 5, 11, 50])
def test_top_k_keeps_what_fewer_than_k_tokens_exceed(k):
    for row in [*LOGITS, *TIED]:
        expected = {i for i, z in enumerate(row) if sum(other > z for other in row) < k}
        assert kept(top_k(row, k), row) == expected
    if k <= 11:
        assert all(len(kept(top_k(row, k), row)) == k for row in LOGITS)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_top_p_keeps_the_fewest_tokens_whose_mass_reaches_p(p):
    for row in LOGITS:
        probabilities = softmax(row)
        subsets = [set(s) for n in range(1, 12) for s in itertools.combinations(range(11), n)]
        mass = [sum(probabilities[i] for i in subset) for subset in subsets]
        enough = [(len(s), -m, s) for s, m in zip(subsets, mass, strict=True) if m >= p - 1e-12]
        *_, expected = min(enough, key=lambda entry: entry[:2])  # of the smallest the likeliest
        assert kept(top_p(row, p), row) == expected


def test_top_p_takes_the_first_of_equal_tokens():
    third = softmax(TIED[0])[1]
    assert kept(top_p(TIED[0], 1.5 * third), TIED[0]) == {1, 2}


@pytest.mark.parametrize("p", [0.0, 0.02, 0.3, 1.0])
def test_min_p_keeps_what_is_near_the_likeliest(p):
    for row in LOGITS:
        probabilities = softmax(row)
        assert kept(min_p(row, p), row) == {i for i in range(11) if probabilities[i] >= p * probabilities.max()}


@pytest.mark.parametrize(
    ("keep", "value"), [(temperature, 0.7), (temperature, 0.0), (top_k, 3), (top_p, 0.6), (min_p, 0.2)]
)
def test_a_filter_treats_each_row_alone(keep, value):
    np.testing.assert_array_equal(keep(LOGITS[None], value)[0, 4], keep(LOGITS[4], value))


def test_temperature_is_a_power_of_the_probabilities_and_0_is_their_limit():
    for row in LOGITS:
        cold = softmax(row) ** (1 / 0.25)
        np.testing.assert_allclose(softmax(temperature(row, 0.25)), cold / cold.sum(), rtol=1e-4, atol=1e-12)
    np.testing.assert_array_equal(softmax(temperature(TIED[0], 0.0)), np.eye(7)[1])


def test_greedy_is_the_argmax_by_every_key_and_the_first_of_equals():
    greedy = TokenSampler(temperature=0.0)
    for seed in range(3):
        keys = row_keys(jax.random.key(seed), np.arange(6))
        np.testing.assert_array_equal(greedy(LOGITS, keys), LOGITS.argmax(-1))
    np.testing.assert_array_equal(greedy(TIED, keys[:1]), [1])
    np.testing.assert_array_equal(jnp.argmax(greedy.filtered(LOGITS), -1), LOGITS.argmax(-1))


def test_a_sampler_is_its_filters_in_their_order():
    sampler = TokenSampler(temperature=0.8, top_k=6, top_p=0.9, min_p=0.1)
    expected = min_p(top_p(top_k(temperature(LOGITS, 0.8), 6), 0.9), 0.1)
    np.testing.assert_array_equal(sampler.filtered(LOGITS), expected)
    other_order = temperature(top_p(LOGITS, 0.9), 0.3)
    assert not np.array_equal(TokenSampler(temperature=0.3, top_p=0.9).filtered(LOGITS), other_order)


@pytest.mark.parametrize("sampler", [TokenSampler(), TokenSampler(0.7, top_k=5), TokenSampler(1.3, top_p=0.8)])
def test_tokens_come_as_often_as_the_filtered_softmax_says(sampler):
    draws, row = 20_000, LOGITS[2]
    keys = row_keys(jax.random.key(0), np.arange(draws))
    tokens = np.asarray(jax.jit(sampler)(jnp.broadcast_to(row, (draws, 11)), keys))
    expected = draws * softmax(sampler.filtered(row))
    counts = np.bincount(tokens, minlength=11)
    assert not counts[expected == 0].any()
    possible = expected > 0
    assert scipy.stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-3


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1.0}, {"temperature": np.nan}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 2.0}],
)
def test_a_sampler_out_of_range_is_refused_by_name(fields):
    (name,) = fields
    with pytest.raises(InputError, match=f"^{name} is "):
        TokenSampler(**fields)


# The loop.


@functools.cache
def weights():
    return meta.unbox(jax.jit(MODEL.init)(jax.random.key(0), PROMPTS))["params"]


@functools.cache
def full():
    return jax.jit(MODEL.apply)


def network() -> Partial:
    def spread(leaf):  # fresh logits are near 0, and all draws much the same
        return 3 * leaf

    return Partial(MODEL.apply, {"params": {**weights(), "head": jax.tree.map(spread, weights()["head"])}})


def written(prompts, lengths, rows, *, choose=SAMPLER, tokens=12, chunk=12, end=None, capacity=24):
    keys = row_keys(jax.random.key(3), np.asarray(rows))
    cache = MODEL.empty_cache(len(prompts), capacity)
    pieces = generate(network(), choose, cache, prompts, lengths, keys, tokens=tokens, chunk=chunk, end=end)
    return np.concatenate(list(pieces), axis=1)


@functools.cache
def together():
    return written(PROMPTS, LENGTHS, range(3))


def test_greedy_decoding_is_what_the_full_forward_pass_says_again_and_again():
    found = written(PROMPTS, LENGTHS, range(3), choose=TokenSampler(temperature=0.0))
    for prompt, length, new in zip(PROMPTS, LENGTHS, found, strict=True):
        row = prompt[:length].tolist()
        for token in new:
            padded = np.array([row + [0] * (24 - len(row))], np.int32)  # what comes later is not seen
            assert token == np.argmax(full()(*network().args, padded)[0, len(row) - 1])
            row.append(int(token))


@pytest.mark.slow
def test_logits_of_the_loop_are_those_of_the_full_forward_pass():
    state = prefill(network(), MODEL.empty_cache(3, 24), PROMPTS, LENGTHS)
    state, tokens = advance(network(), TokenSampler(), row_keys(jax.random.key(3), np.arange(3)), state, steps=12)
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        whole = np.concatenate([prompt[:length], tokens[row]])
        padded = np.pad(whole, (0, 24 - len(whole)))[None]
        expected = full()(*network().args, padded)[0, len(whole) - 1]
        np.testing.assert_allclose(state.logits[row], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(state.cache.length, LENGTHS + 12)


@pytest.mark.parametrize("chunk", [1, 5])
def test_the_chunk_changes_nothing(chunk):
    np.testing.assert_array_equal(written(PROMPTS, LENGTHS, range(3), chunk=chunk), together())


def test_fewer_tokens_are_the_first_of_more():
    np.testing.assert_array_equal(written(PROMPTS, LENGTHS, range(3), tokens=7, chunk=5), together()[:, :7])


def test_a_row_does_not_depend_on_its_batch_nor_on_padding():
    np.testing.assert_array_equal(written(PROMPTS[1:2, :2], [2], [1])[0], together()[1])
    padding = np.where(np.arange(5) < LENGTHS[:, None], PROMPTS, 9)
    np.testing.assert_array_equal(written(padding[::-1], LENGTHS[::-1], [2, 1, 0]), together()[::-1])


def test_rows_with_other_numbers_are_other_draws_of_one_distribution():
    same = written(np.repeat(PROMPTS[:1], 3, axis=0), [5, 5, 5], range(3))
    assert len({tuple(row) for row in same}) == 3


def test_a_row_goes_on_saying_the_end_and_all_of_them_stop():
    free = together()
    end = int(free[0, 3])
    found = written(PROMPTS, LENGTHS, range(3), end=end, chunk=2)
    for row, expected in zip(found, free, strict=True):
        at = np.flatnonzero(expected == end)
        stop = at[0] if len(at) else len(expected)
        np.testing.assert_array_equal(row[: stop + 1], expected[: len(row)][: stop + 1])
        assert (row[stop:] == end).all()
    last = max(np.flatnonzero(row == end)[0] if (row == end).any() else 11 for row in free)
    assert found.shape[1] == min(12, 2 * (last // 2 + 1))


@pytest.mark.parametrize("lengths", [[5, 2, 0], [6, 2, 1], [5, 2]])
def test_a_prompt_without_tokens_or_with_too_many_is_refused(lengths):
    with pytest.raises(InputError, match="lengths of prompts"):
        written(PROMPTS, lengths, range(3))


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(InputError, match="chunk is 0"):
        written(PROMPTS, LENGTHS, range(3), chunk=0)
