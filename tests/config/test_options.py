"""Laws of options: the words of a value are read as that value, and the help knows every option."""

from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genjax.config.options import kind_name, print_help, value_of
from genjax.config.tree import MISSING, Draft, Value
from tests.config.conftest import refused
from tests.config.room.densities import Beta2P, Tabulated
from tests.config.room.system import Curve, Density, System

finite = st.floats(allow_nan=False, allow_infinity=False)


def words(value) -> list[str]:
    return [str(item) for item in (value if isinstance(value, tuple) else [value])]


@settings(max_examples=25)
@given(st.integers() | finite | st.booleans() | st.none() | st.lists(finite).map(tuple))
def test_the_words_of_a_value_are_read_as_that_value(value):
    hint = tuple[float, ...] if isinstance(value, tuple) else (int if value is None else type(value)) | None
    assert value_of("a.b", words(value), Value(MISSING, hint)) == value


def test_a_string_is_one_word_and_may_look_like_an_option():
    assert value_of("a", ["--x=1 y"], Value("", str)) == "--x=1 y"
    assert value_of("a", [], Value(False, bool)) is True
    assert value_of("a", ["x", "1"], Value({}, dict[str, float])) == {"x": 1.0}


@pytest.mark.parametrize(
    ("hint", "given", "sentence"),
    [
        (int, [], "--a needs a value: an int"),
        (int, ["x", "y"], "--a takes an int, not 'x y'"),
        (Literal["euler", "heun"], ["heum"], "--a takes one of euler, heun, not 'heum'; did you mean heun?"),
        (float | Curve, ["cosin"], "--a takes a float or one of Cosine, Net, not 'cosin'; did you mean Cosine?"),
        (Any, ["1"], "--a cannot be set on the command line, only in the config file"),
    ],
)
def test_words_that_do_not_fit_are_refused_in_one_sentence(hint, given, sentence, capsys):
    assert refused(value_of, "a", given, Value(MISSING, hint)) == sentence
    assert capsys.readouterr() == ("", "")


def test_a_kind_goes_by_its_name_or_by_its_path():
    assert kind_name(Value(Beta2P(), Density)) == "Beta2P"
    assert kind_name(Value(Draft.of_defaults(Tabulated), Density)) == "Tabulated"
    assert kind_name(Value(None, Density | None)) == "None"
    assert kind_name(Value(System(), Density)) == "tests.config.room.system.System"


def test_the_help_says_what_is_required_and_what_is_fixed(capsys):
    with pytest.raises(SystemExit):
        print_help([Draft.of_defaults(Tabulated), System()])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Inherits from the protocol, and needs a value." in text
    assert "--path STR File of the table. (required)" in text
    assert "--sealed {fixed} Not for the command line. (fixed to: None)" in text
