"""Laws of values: what fits its declared type comes out hashable, and what does not is refused."""

from typing import Any, SupportsFloat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genjax.config.values import FrozenDict, hashable, typed
from tests.config.conftest import refused
from tests.config.room.densities import Beta2P
from tests.config.room.system import Density, Digits, Folder, LogitNormal, Player

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), st.integers()))
def test_a_frozen_dict_is_equal_to_its_dict_and_its_hash_knows_no_order(items):
    frozen, turned = FrozenDict(items), FrozenDict(dict(reversed(items.items())))
    assert frozen == items and items == frozen and frozen == turned
    assert hash(frozen) == hash(turned)
    assert list(frozen) == list(items) and repr(frozen) == repr(items)


def test_a_frozen_dict_does_not_change():
    items = {"a": 1}
    frozen = FrozenDict(items)
    items["a"] = 2
    assert frozen == {"a": 1} and FrozenDict() == {}
    with pytest.raises(TypeError):
        frozen["a"] = 3


@given(plain)
def test_all_plain_data_comes_out_hashable_and_of_the_same_values(value):
    def thawed(value):
        if isinstance(value, FrozenDict):
            return {key: thawed(item) for key, item in value.items()}
        return list(map(thawed, value)) if isinstance(value, tuple) else value

    hash(hashable(value))
    assert thawed(hashable(value)) == value
    assert hashable(hashable(value)) == hashable(value)
    assert typed(value, Any, "x") == hashable(value)


def test_dicts_are_frozen_whatever_they_are_declared_as():
    for hint in (dict[str, float], dict, Any, dict[str, float] | None):
        value = typed({"a": 1}, hint, "x")
        assert isinstance(value, FrozenDict) and value == {"a": 1.0}
        assert typed(value, hint, "x") == value


def test_the_name_of_a_kind_stands_for_its_defaults():
    assert typed("beta_2p", Density, "x") == Beta2P()
    assert typed("digits", Digits | Folder, "x") == Digits()
    assert typed("None", Player | None, "x") is None
    assert typed("LogitNormal", str | Density, "x") == "LogitNormal"
    assert refused(typed, "beta_3p", Density, "x").endswith("; did you mean Beta2P?")
    assert refused(typed, "folder", Digits | Folder, "x").startswith("x.root is missing: ")


def test_a_protocol_takes_a_dataclass_that_conforms():
    assert typed(LogitNormal(), Density, "x") == LogitNormal()
    assert refused(typed, Player(), Density, "x") == "x takes a Density, not a Player"
    assert refused(typed, Player(), Density | None, "x") == "x takes a Density or None, not a Player"


@pytest.mark.parametrize("value", [5, 0.5, True, (1,), {}, {"std": 1}, None, abs, LogitNormal])
def test_a_protocol_of_a_room_takes_nothing_but_a_dataclass(value):
    assert refused(typed, value, Density, "x").startswith("x takes a Density, not ")
    assert refused(typed, value, Player, "x").startswith("x takes a Player, not ")
    assert typed(5, SupportsFloat, "x") == 5
