"""Laws of kinds: what conforms in a protocol's own room can be chosen by name, and nothing else."""

import dataclasses
import sys
import textwrap

import pytest

from genjax.config.kinds import construct, fields, kind_named, kinds, members, room, takes_kinds, takes_words
from genjax.diffusion.process import Process
from genjax.diffusion.times import CosMap, LogitNormal, Mode, TimeDensity, Uniform
from genjax.errors import InputError
from tests.config.conftest import refused
from tests.config.room import densities, system


def test_the_kinds_of_a_protocol_are_the_concrete_frozen_dataclasses_and_networks_of_its_room_that_conform():
    expected = [densities.Beta2P, densities.Tabulated, densities.Learnt, system.LogitNormal]
    assert list(kinds(system.Density).values()) == expected
    assert list(kinds(system.Density)) == ["Beta2P", "Tabulated", "Learnt", "LogitNormal"]
    assert kinds(system.Curve) == {"Cosine": densities.Cosine, "Net": system.Net}


def test_rooms_of_genjax_are_found():
    there = {"Uniform": Uniform, "LogitNormal": LogitNormal, "Mode": Mode, "CosMap": CosMap}
    assert there.items() <= kinds(TimeDensity).items()
    assert "RectifiedFlow" in kinds(Process) and not there.keys() & kinds(Process).keys()
    assert not room(TimeDensity).failures


def test_a_union_takes_its_members_and_none_where_it_is_one():
    assert kinds(system.Digits | system.Folder | None) == {
        "Digits": system.Digits,
        "Folder": system.Folder,
        "None": type(None),
    }
    assert list(kinds(system.Density | None))[-2:] == ["LogitNormal", "None"]


def test_what_takes_kinds_and_what_takes_words_as_well():
    for hint in (system.Density, system.Density | None, system.Digits | system.Folder, system.Player | None):
        assert takes_kinds(hint) and not takes_words(hint)
    assert takes_kinds(float | system.Curve) and takes_words(float | system.Curve)
    assert takes_kinds(system.Records[int])
    for hint in (int, float | None, system.Player, system.Net, tuple[system.Density, ...], dict[str, float], object):
        assert not takes_kinds(hint)


def test_a_protocol_asks_for_its_fields_its_methods_and_its_special_methods():
    assert set(members(system.Records)) == {"size", "__len__", "__getitem__"}
    assert members(system.Curve) == ("__call__",)


@pytest.mark.parametrize("word", ["Beta2P", "beta2p", "beta_2p", "BETA-2P", "tests.config.room.densities.Beta2P"])
def test_a_kind_has_one_name_in_many_spellings(word):
    assert kind_named(word, system.Density, "times", ("tests.",)) is densities.Beta2P


def test_a_refused_kind_is_told_what_there_is_and_which_module_could_not_be_imported():
    told = refused(kind_named, "Beta3P", system.Density, "--times")
    assert told == (
        "--times takes one of Beta2P, Tabulated, Learnt, LogitNormal, not 'Beta3P' (tests.config.room.broken cannot be "
        "imported: No module named 'a_package_that_nobody_has'); did you mean Beta2P?"
    )


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("densities.Nothing", "is none: it has no log_prob"),
        ("densities.Plain", "it is not a dataclass of an accepted module"),
        ("densities.Density", "it is not a dataclass of an accepted module"),
        ("nowhere.Kind", "there is no such type"),
    ],
)
def test_a_dotted_path_leads_to_a_dataclass_that_conforms(path, sentence):
    path = f"tests.config.room.{path}"
    assert refused(kind_named, path, system.Density, "--times", ("tests.",)).endswith(sentence)
    assert "only types of genjax are accepted" in refused(kind_named, path, system.Density, "--times")


def test_a_generic_protocol_is_one_like_any_other():
    told = refused(kind_named, "tests.config.room.system.Player", system.Records[int] | None, "--records", ("tests.",))
    assert told.endswith("is none: it has no size, __getitem__, __len__")
    assert kinds(system.Records[int] | None) == {"None": type(None)}


def test_two_kinds_of_one_name_go_by_their_paths(tmp_path, monkeypatch):
    for module in ("protocol", "first", "second"):
        (tmp_path / "twins").mkdir(exist_ok=True)
        (tmp_path / "twins" / f"{module}.py").write_text(
            textwrap.dedent(
                """
                from dataclasses import dataclass
                from typing import Protocol

                class Shape(Protocol):
                    def area(self): ...

                @dataclass(frozen=True)
                class Round:
                    def area(self): ...
                """
                if module != "protocol"
                else """
                from typing import Protocol

                class Shape(Protocol):
                    def area(self): ...
                """
            )
        )
    monkeypatch.syspath_prepend(tmp_path)
    from twins.protocol import Shape

    assert list(kinds(Shape)) == ["twins.first.Round", "twins.second.Round"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "twins"]:
        monkeypatch.delitem(sys.modules, name)


def test_fields_tell_their_defaults_and_a_missing_one_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Held:
        a: int
        b: list = dataclasses.field(default_factory=list)
        c: int = dataclasses.field(default=1, init=False)

    assert list(fields(Held)) == ["a", "b"] and fields(Held)["a"].required
    assert fields(Held)["b"].default() == []
    assert construct(Held, {"a": 1}, "x") == Held(1)
    assert refused(construct, Held, {}, "x").startswith("x.a is missing: ")


def test_a_refusal_that_begins_with_a_field_is_told_with_the_place_of_its_kind():
    @dataclasses.dataclass(frozen=True)
    class Held:
        rate: float = 1.0

        def __post_init__(self):
            if self.rate < 0:
                raise InputError(f"rate of Held is positive, not {self.rate}")
            if self.rate > 1:
                raise InputError("the rates of all are at most 1")

    assert refused(construct, Held, {"rate": -1.0}, "players.0") == "players.0.rate of Held is positive, not -1.0"
    assert refused(construct, Held, {"rate": -1.0}, "") == "rate of Held is positive, not -1.0"
    assert refused(construct, Held, {"rate": 2.0}, "players.0") == "the rates of all are at most 1"
