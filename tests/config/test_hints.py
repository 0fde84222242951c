"""Laws of declared types: each is said in words, and the nearest name is found in any spelling."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest

from genjax.config.hints import alternatives, did_you_mean, in_words, item_hint, join, refusal, same_spelling


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an int"),
        (float | None, "a float or None"),
        (Literal["euler", "heun"], "one of euler, heun"),
        (Annotated[bool, "x"], "True or False"),
        (tuple[int, str], "an int and a string"),
        (tuple[int, ...], "any number of values (an int each)"),
        (dict[str, float], "names with values (a float each)"),
        (ValueError, "a ValueError"),
    ],
)
def test_a_type_is_said_in_words(hint, words):
    assert in_words(hint) == words
    assert str(refusal("x", hint, 1j)) == f"x takes {words}, not a complex"


def test_alternatives_are_those_of_a_union_however_it_is_written():
    assert alternatives(int) == (int,)
    assert alternatives(Annotated[int | None, "x"] | str) == (int, type(None), str)


def test_the_type_of_an_item_is_that_of_its_place():
    assert [item_hint(tuple[int, str], i) for i in (0, 1)] == [int, str]
    assert item_hint(tuple[int, ...] | None, 5) is item_hint(Sequence[int], 5) is item_hint(dict[str, int], 0) is int
    assert item_hint(int, 0) is Any


@pytest.mark.parametrize("name", ["dpmpp_2n", "DPMpp2m", "dpmpp-2M", "solvers.DPMpp2M"[8:]])
def test_the_nearest_name_is_found_in_any_spelling(name):
    assert did_you_mean(name, ["Euler", "DPMpp2M"], "--") == "; did you mean --DPMpp2M?"
    assert did_you_mean(name, ["Euler"]) == ""


def test_a_last_part_finds_the_whole_name():
    assert did_you_mean("steps", ["steep", "train.steps"]) == "; did you mean train.steps?"


def test_spellings_and_paths():
    assert same_spelling("dpmpp_2m") == same_spelling("DPM-pp2M") == "dpmpp2m"
    assert (join("", "a"), join("a", "b")) == ("a", "a.b")
