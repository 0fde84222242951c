"""Laws of a config as a tree: what is named is replaced, what is misnamed or mistyped is refused in one sentence."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from genjax import config as C
from genjax.config.tree import leaves, place
from tests.config.conftest import refused
from tests.config.room.densities import Beta2P, Cosine, Learnt, Tabulated
from tests.config.room.system import Digits, Folder, LogitNormal, Net, Player, System


def test_override_replaces_values_and_whole_parts():
    changes = {"train.clip": 1, "players.1.rate": 5.0, "data.mixture.extra-set": 2, "model": Net(depth=9)}
    new = C.override(System(), changes)
    assert C.differences(System(), new) == [
        ("model.depth", 2, 9),
        ("data.mixture.extra-set", 0.5, 2.0),
        ("players.1.rate", 2e-3, 5.0),
        ("train.clip", None, 1.0),
    ]
    assert new.times is System().times


def test_a_list_becomes_a_tuple_and_anything_else_that_does_not_fit_is_refused():
    assert C.override(System(), {"train.betas": [1, 0.5]}).train.betas == (1.0, 0.5)
    assert refused(C.override, System(), {"train.steps": jnp.ones((3, 3))}).startswith(
        "train.steps takes an int, not a"
    )


def test_override_refuses_unknown_names_and_wrong_types():
    assert refused(C.override, System(), {"train.stesp": 3}).endswith("; did you mean train.steps?")
    assert refused(C.override, System(), {"steps": 3}).endswith("; did you mean train.steps?")
    assert refused(C.override, System(), {"train": Player()}) == "train takes a Train, not a Player"
    assert refused(C.override, System(), {"times.std": 0}) == "LogitNormal takes a positive std, not 0.0"


# ---- kinds


def test_override_takes_the_name_of_a_kind_and_sets_its_fields_in_any_order():
    changes = {"times": "beta_2p", "times.a": 2, "times.inner.mean": 3}
    for order in (changes, dict(reversed(changes.items()))):
        assert C.override(System(), order).times == Beta2P(2.0, LogitNormal(3.0))
    new = C.override(System(), {"times": "Tabulated", "times.path": "x", "data": "Folder", "data.root": "y"})
    assert (new.times, new.data) == (Tabulated("x"), Folder("y"))
    assert C.override(System(), {"times": "Learnt", "times.width": 2}).times == Learnt(2)
    assert C.override(System(), {"times": "tests.config.room.densities.Beta2P"}, allow=("tests.",)).times == Beta2P()
    assert C.override(System(rival=Player()), {"rival": None}).rival is None
    assert C.override(System(), {"curve": "Cosine"}).curve == Cosine()
    assert C.override(System(curve=Cosine()), {"curve": 3}).curve == 3.0


def test_the_kind_that_is_there_keeps_its_fields_and_another_has_its_defaults():
    config = C.frozen(System(times=LogitNormal(5.0)))
    assert C.override(config, {"times": "LogitNormal"}) is config
    assert C.override(config, {"times": "LogitNormal", "times.std": 2.0}).times == LogitNormal(5.0, 2.0)
    assert C.override(System(times=Beta2P(5.0)), {"times": "LogitNormal"}).times == LogitNormal()


def test_an_inner_name_is_a_field_of_what_an_outer_one_puts_there():
    assert C.override(System(), {"times.a": 2, "times": Beta2P(3.0, LogitNormal(1.0))}).times.inner.mean == 1.0
    assert C.override(System(), {"times.inner": "Beta2P", "times": Beta2P(3.0)}).times == Beta2P(3.0, Beta2P())
    told = refused(C.override, System(rival=Player()), {"rival": None, "rival.rate": 3.0})
    assert told.startswith("rival.rate is not a field of this config")
    told = refused(C.override, System(times=Beta2P()), {"times": LogitNormal(), "times.a": 3})
    assert told.startswith("times.a is not a field of this config")


def test_override_refuses_what_is_no_kind_or_a_field_of_another():
    assert refused(C.override, System(), {"times": "Bta2P"}).endswith("; did you mean Beta2P?")
    assert refused(C.override, System(), {"times": "Beta2P", "times.std": 1}).startswith("times.std is not a field of")
    assert refused(C.override, System(), {"data": "Folder"}).startswith("data.root is missing: ")
    assert refused(C.override, System(), {"times": Player()}) == "times takes a Density, not a Player"


# ---- fields that may change


class Marked(nn.Module):
    width: int = 8
    remat: str = dataclasses.field(default="full", metadata={"may_change": True})

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)


@dataclasses.dataclass(frozen=True)
class Markers:
    net: nn.Module = Marked()
    more: tuple[Marked, ...] = (Marked(), Marked())
    mesh: Digits = dataclasses.field(default_factory=Digits, metadata={"may_change": True})
    data: Digits = dataclasses.field(default_factory=Digits)


@pytest.mark.parametrize("name", ["net.remat", "more.1.remat", "mesh", "mesh.path", "mesh.mixture.extra-set"])
def test_a_marked_field_and_all_below_it_may_change(name):
    assert C.may_change(Markers(), name)


@pytest.mark.parametrize("name", ["net", "net.width", "more", "more.1", "data.mixture.extra-set", "type", "x.remat"])
def test_no_other_field_may_change(name):
    assert not C.may_change(Markers(), name)


def test_a_marked_field_of_a_linen_module_is_a_field_like_any_other():
    assert Marked(remat="none").remat == "none" and Marked() != Marked(remat="none")
    changed = C.override(Markers(), {"net.remat": "none", "net.width": 4})
    names = [name for name, *_ in C.differences(Markers(), changed)]
    assert [(name, C.may_change(changed, name)) for name in names] == [("net.width", False), ("net.remat", True)]
    assert changed.net.init_with_output(jax.random.key(0), jnp.ones((1, 2)))[0].shape == (1, 4)


# ---- hashes


@pytest.mark.parametrize(
    "change", [{}, {"data.mixture.train": 2}, {"data.mixture": {"a": 1}}, {"anything": {"a": [{}]}}]
)
def test_a_config_with_dicts_is_a_static_argument_of_a_compiled_function(change):
    compiled = []

    @functools.partial(jax.jit, static_argnums=0)
    def total(config, x):
        compiled.append(config)
        return x * sum(config.data.mixture.values())

    config = C.override(C.frozen(System()), change)
    again = C.override(C.frozen(System()), change)
    expected = 2 * sum(config.data.mixture.values())
    assert total(config, 2.0) == total(again, 2.0) == expected
    assert len(compiled) == 1


def test_freezing_changes_no_value_and_keeps_what_is_frozen():
    config = System(players=(Player(), Player()), anything=({"a": {"b": (1, {})}},))
    once = C.frozen(config)
    assert once == config and hash(once) == hash(C.frozen(config)) and C.differences(once, config) == []
    assert C.frozen(once) is once and once.model is config.model and once.train is config.train
    assert dict(leaves(once)) == dict(leaves(config))


def test_an_outer_name_is_placed_before_an_inner_one():
    assert C.frozen(place(System(), {"train.steps": 5, "model.depth": 3, "model": Net(depth=9, width=1)})).model == Net(
        depth=3, width=1
    )
