"""Laws of retrieval among captions."""

import numpy as np
import pytest

from genjax.errors import InputError
from genjax.metrics.retrieval import retrieval_accuracy


def unit(count: int, width: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(count, width))
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_features_of_their_own_captions_are_always_right():
    features = unit(60, 8, 0)
    assert retrieval_accuracy(features, features) == 1.0


@pytest.mark.parametrize("among", [2, 10, 50])
def test_features_that_know_nothing_are_right_once_in_as_many(among):
    count = 4000
    accuracy = retrieval_accuracy(unit(count, 8, 0), unit(count, 8, 1), among=among)
    chance = 1 / among
    # All images share the captions, which makes the hits a little dependent: twice the binomial's error, four times.
    assert abs(accuracy - chance) < 8 * np.sqrt(chance * (1 - chance) / count)


def test_a_tie_is_a_miss():
    assert retrieval_accuracy(np.ones((60, 3)), np.ones((60, 3))) == 0.0
    images = texts = np.repeat(np.eye(30), 2, axis=0)  # each caption twice: among all, its double is there
    assert retrieval_accuracy(images, texts, among=60) == 0.0


def test_what_is_not_a_number_is_a_miss():
    features = unit(60, 8, 0)
    broken = np.where(np.arange(60)[:, None] < 15, np.nan, features)
    assert retrieval_accuracy(broken, features) == 0.75


def test_among_all_it_is_the_share_of_rows_with_the_largest_score_on_the_diagonal():
    images, texts = unit(40, 4, 0), unit(40, 4, 0) + 0.3 * unit(40, 4, 1)
    scores = images @ texts.T
    expected = np.mean(scores.argmax(axis=1) == np.arange(40))
    assert 0 < expected < 1
    assert retrieval_accuracy(images, texts, among=40) == expected


def test_turning_both_spaces_changes_nothing():
    images, texts = unit(80, 4, 0), unit(80, 4, 0) + 0.5 * unit(80, 4, 1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    straight = retrieval_accuracy(images, texts, among=20)
    assert 0 < straight < 1
    assert retrieval_accuracy(images @ turn, texts @ turn, among=20) == straight


def test_the_seed_decides_the_others_and_more_of_them_are_harder():
    images, texts = unit(300, 4, 0), unit(300, 4, 0) + 0.5 * unit(300, 4, 1)
    assert retrieval_accuracy(images, texts, seed=3) == retrieval_accuracy(images, texts, seed=3)
    accuracies = [retrieval_accuracy(images, texts, among=among) for among in (2, 20, 200)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert len({retrieval_accuracy(images, texts, seed=seed) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("images", "texts", "among", "sentence"),
    [
        (unit(5, 3, 0), unit(5, 4, 0), 2, r"\(5, 3\) and \(5, 4\)"),
        (unit(5, 3, 0), unit(5, 3, 0), 50, "among 50 captions takes 2 or more, and there are 5"),
        (unit(5, 3, 0), unit(5, 3, 0), 1, "among 1 captions"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(unchecked, images, texts, among, sentence):
    with pytest.raises(InputError, match=sentence):
        retrieval_accuracy(images, texts, among=among)
