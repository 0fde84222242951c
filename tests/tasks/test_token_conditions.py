"""Laws of prefixes: what is told is told by ids of its own, and nothing is told by the null."""

import numpy as np
import pytest

from genjax.data import Digits
from genjax.errors import InputError
from genjax.tasks.token_conditions import CaptionTokens, ClassToken, StartToken

DATA = Digits()
RNG = np.random.default_rng(0)
CONDITIONS = {"class": ClassToken(), "caption": CaptionTokens(words=6, rows=64), "start": StartToken()}


@pytest.fixture(params=CONDITIONS)
def condition(request):
    return CONDITIONS[request.param]


def test_every_prefix_is_of_one_length_and_below_the_vocabulary(condition):
    source, null = DATA.source("train"), condition.null(DATA)
    wishes = [words for words, *_ in condition.wishes(DATA)]
    prefixes = [null, *condition.asked(wishes, DATA), *(condition.prefix(source[i], RNG, DATA) for i in range(20))]
    for prefix in prefixes:
        assert prefix.shape == null.shape
        assert prefix.dtype == np.int32
        assert prefix.min() >= 0 and prefix.max() < condition.vocabulary(DATA)


def test_a_class_is_told_by_its_index_and_the_null_is_one_more():
    condition = ClassToken()
    assert condition.asked(["zero", "9"], DATA).tolist() == [[0], [9]]
    assert condition.null(DATA).tolist() == [10]
    assert condition.vocabulary(DATA) == 11
    example = DATA.source("train")[3]
    assert condition.prefix(example, RNG, DATA).tolist() == [example["label"]]
    assert condition.prefix(example | {"label": -1}, RNG, DATA).tolist() == [10]


def test_words_are_told_apart_by_their_two_ids_and_said_alike_in_any_case():
    condition = CaptionTokens(words=3, rows=1024)
    one, other, same, short = condition.asked(["red apple", "green apple", "Red  apple!", "red"], DATA)
    assert (one == same).all() and (one[:2] != other[:2]).any() and (one[2:] == other[2:]).all()
    assert (short[:2] == one[:2]).all() and (short[2:] == condition.null(DATA)[2:]).all()
    assert (one[0::2] < 1024).all() and (one[1::2] >= 1024).all()


def test_a_caption_that_is_too_long_and_a_class_that_is_none_are_refused():
    with pytest.raises(InputError, match="has 4 words, and this text encoder takes at most 3"):
        CaptionTokens(words=3).asked(["one two three four"], DATA)
    with pytest.raises(InputError, match="there is no class 'ten'"):
        ClassToken().asked(["ten"], DATA)


@pytest.mark.parametrize("kind", [ClassToken, CaptionTokens])
def test_a_dropout_that_is_no_probability_is_refused(kind):
    with pytest.raises(InputError, match="dropout of a condition lies in"):
        kind(dropout=1.5)
    with pytest.raises(InputError, match="words and rows of CaptionTokens"):
        CaptionTokens(words=0)
