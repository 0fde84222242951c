"""Laws of the language model's loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.language.losses import bits_per_byte, cross_entropy, next_token_loss, shifted_targets

DOCUMENTS = [[5, 3, 8], [7], [1, 2, 4, 6, 1]]
TOKENS = np.array([sum(DOCUMENTS, []) + [0]], np.int32)
SEGMENTS = np.array([[0, 0, 0, 1, 2, 2, 2, 2, 2, -1]], np.int32)
LOGITS = np.random.default_rng(0).normal(size=(1, 10, 9)).astype(np.float32)


def test_targets_by_hand():
    targets, counts = shifted_targets(TOKENS, SEGMENTS)
    np.testing.assert_array_equal(targets, [[3, 8, 0, 0, 2, 4, 6, 1, 0, 0]])
    np.testing.assert_array_equal(counts, [[1, 1, 0, 0, 1, 1, 1, 1, 0, 0]])
    targets, counts = shifted_targets(TOKENS, SEGMENTS, by=3)
    np.testing.assert_array_equal(targets, [[0, 0, 0, 0, 6, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(counts, [[0, 0, 0, 0, 1, 1, 0, 0, 0, 0]])


@pytest.mark.parametrize("by", [1, 2, 4])
def test_packed_documents_have_the_targets_that_each_has_alone(by):
    together = shifted_targets(TOKENS, SEGMENTS, by=by)
    padding = [np.zeros((1, 1), np.int32)]
    alone = [shifted_targets(np.array([document], np.int32), by=by) for document in DOCUMENTS]
    for packed, parts in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(packed, np.concatenate([*parts, *padding], axis=1))


def test_targets_before_the_next_token_are_refused():
    with pytest.raises(ValueError, match="by = 0"):
        shifted_targets(TOKENS, by=0)


def test_the_loss_of_packed_documents_is_the_sum_of_theirs():
    losses, counts = next_token_loss(LOGITS, TOKENS, SEGMENTS)
    total, start = 0.0, 0
    for document in DOCUMENTS:
        own = LOGITS[0, start : start + len(document)].astype(np.float64)
        log_softmax = own - np.log(np.exp(own).sum(-1, keepdims=True))
        total -= sum(log_softmax[i, document[i + 1]] for i in range(len(document) - 1))
        start += len(document)
    np.testing.assert_allclose(losses.sum(), total, rtol=1e-6)
    assert counts.sum() == sum(len(document) - 1 for document in DOCUMENTS)
    assert not np.asarray(losses)[~np.asarray(counts)].any()


def test_a_mask_names_the_tokens_that_are_predicted():
    mask = np.zeros((1, 10), bool)
    mask[0, [0, 2, 3, 7]] = True  # the first tokens of two documents are predicted by nothing
    losses, counts = next_token_loss(LOGITS, TOKENS, SEGMENTS, mask)
    np.testing.assert_array_equal(np.flatnonzero(counts), [1, 6])
    np.testing.assert_array_equal(losses[0, [1, 6]], next_token_loss(LOGITS, TOKENS, SEGMENTS)[0][0, [1, 6]])


def test_no_gradient_comes_from_where_there_is_no_target():
    gradient = jax.grad(lambda logits: next_token_loss(logits, TOKENS, SEGMENTS)[0].sum())(LOGITS)
    _, counts = shifted_targets(TOKENS, SEGMENTS)
    np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, counts)


def test_cross_entropy_is_of_float32_even_for_large_logits_in_bfloat16():
    logits = jnp.array([[300.0, 296.0, -9984.0]], jnp.bfloat16)
    rest = math.log1p(math.exp(-4))
    for target, expected in enumerate([rest, 4 + rest, 10284 + rest]):
        loss = cross_entropy(logits, jnp.array([target]))
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, [expected], rtol=1e-5)


def test_a_model_that_knows_nothing_needs_the_bits_of_a_byte():
    losses, counts = next_token_loss(np.zeros((2, 5, 256), np.float32), np.ones((2, 5), np.int32))
    np.testing.assert_allclose(bits_per_byte(float(losses.sum()), int(counts.sum())), 8, rtol=1e-6)
