"""Laws of recorded configs: what is saved comes back, and a record that does not fit is refused in one sentence."""

import functools
import json

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genjax import config as C
from tests.config.conftest import ALLOWED, HERE, refused
from tests.config.room.densities import Beta2P, Cosine
from tests.config.room.system import Digits, Folder, LogitNormal, Net, Player, System, Train


def through_json(config):
    return C.from_dict(json.loads(json.dumps(C.to_dict(config), allow_nan=False)), allow=ALLOWED)


finite = st.floats(allow_nan=False, allow_infinity=False)
trains = st.builds(
    Train,
    steps=st.integers(),
    clip=st.none() | finite,
    warm=st.booleans(),
    schedule=st.sampled_from(["cosine", "constant"]),
    betas=st.lists(finite).map(tuple),
)
keys = st.text().filter(lambda key: key != "type")
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=5,
)
systems = st.builds(
    System,
    model=st.builds(Net, depth=st.integers(), kernel=st.tuples(st.integers(), st.integers())),
    times=st.builds(LogitNormal, mean=finite, std=st.floats(0.1, 9)),
    data=st.builds(Digits, path=st.text(), mixture=st.dictionaries(keys, finite)) | st.builds(Folder, root=st.text()),
    players=st.lists(st.builds(Player, rate=finite)).map(tuple),
    rival=st.none() | st.builds(Player, rate=finite),
    train=trains,
    anything=plain | trains,
)


@given(systems)
def test_a_config_comes_back_from_json(config):
    again = through_json(config)
    assert C.to_dict(again) == C.to_dict(config)
    assert C.differences(again, config) == []
    assert (again.train, again.data, again.players, again.anything) == (
        config.train,
        config.data,
        config.players,
        config.anything,
    )


def test_a_rebuilt_network_is_the_same_network(tmp_path):
    C.save(System(), tmp_path / "run" / "config.json", allow=ALLOWED)
    again = C.read(tmp_path / "run" / "config.json", allow=ALLOWED)
    assert again.model == Net(depth=2) and hash(again.model) == hash(Net(depth=2))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_parent_and_name_of_a_linen_module_are_not_part_of_it():
    assert C.to_dict(Net(depth=2, name="x")) == C.to_dict(Net(depth=2))
    assert C.to_dict(Net(depth=2)) == {"type": f"{HERE}.Net", "depth": 2, "width": 8, "kernel": [3, 3]}


def test_an_int_is_a_float_but_a_float_is_no_int_and_a_bool_is_no_number():
    data = C.to_dict(System())
    data["times"]["mean"] = 2
    assert isinstance(C.from_dict(data, allow=ALLOWED).times.mean, float)
    for value in (2.0, True, "2", None, [2]):
        data["train"]["steps"] = value
        assert refused(C.from_dict, data, allow=ALLOWED).startswith("train.steps takes an int, not ")


def test_only_dataclasses_of_accepted_modules_are_built():
    for name in (f"{HERE}.Train", "subprocess.Popen", "os.system", 3):
        assert "only types of genjax are accepted" in refused(C.from_dict, {"type": name})
    for name in ("genjax.errors.InputError", "genjax.config.tree.dataclasses", "genjax.config.tree.Value"):
        assert "it is not a dataclass of an accepted module" in refused(C.from_dict, {"type": name})
    for name in ("genjax.errors.Nothing", "genjax.nowhere.Nothing", "genjax."):
        assert "there is no such type" in refused(C.from_dict, {"type": name})
    assert "with a 'type'" in refused(C.from_dict, {})
    inner = C.to_dict(System()) | {"model": {"type": "os.system"}}
    assert refused(C.from_dict, inner, allow=ALLOWED).startswith("model cannot be of type 'os.system'")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("train.stesp", 3, f"train.stesp is not a field of {HERE}.Train; did you mean steps?"),
        ("train.zzz", 3, f"train.zzz is not a field of {HERE}.Train; it has seed, steps, batch_size, "),
        ("train.schedule", "cosin", "train.schedule takes one of cosine, constant, not 'cosin'; did you mean cosine?"),
        ("train.clip", "big", "train.clip takes a float or None, not 'big'"),
        ("train.clip", float("inf"), "train.clip takes a finite float, not inf"),
        ("train.betas", [0.9, "x"], "train.betas.1 takes a float, not 'x'"),
        ("train.betas", 0.9, "train.betas takes any number of values (a float each), not 0.9"),
        ("model.kernel", [1, 2, 3], "model.kernel takes an int and an int, not (1, 2, 3)"),
        ("data.mixture", {"a": "b"}, "data.mixture.a takes a float, not 'b'"),
        ("data", 3, "data takes a Digits or a Folder, not 3"),
        ("data", C.to_dict(Player()), "data takes a Digits or a Folder, not a Player"),
        ("times.std", -1, "LogitNormal takes a positive std, not -1.0"),
    ],
)
def test_a_recorded_field_that_does_not_fit_is_refused(path, value, sentence):
    data = C.to_dict(System())
    *nodes, last = path.split(".")
    functools.reduce(lambda node, key: node[key], nodes, data)[last] = value
    assert refused(C.from_dict, data, allow=ALLOWED).startswith(sentence)


def test_a_missing_field_takes_its_default_or_is_refused():
    name = f"{HERE}.Net"
    assert C.from_dict({"type": name, "depth": 1}, allow=ALLOWED) == Net(depth=1)
    assert refused(C.from_dict, {"type": name}, allow=ALLOWED) == (
        f"depth is missing: {name} needs it and has no default for it"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), jnp.float32, [1], {1: 2}, {"type": 1}, len])
def test_what_json_cannot_hold_is_refused(value):
    assert refused(C.to_dict, System(anything=value)).startswith("anything cannot be recorded: ")


def test_the_name_of_a_kind_that_an_old_record_holds_is_that_kind():
    data = C.to_dict(System()) | {"times": "beta_2p", "curve": "cosine"}
    again = C.from_dict(data, allow=ALLOWED)
    assert (again.times, again.curve) == (Beta2P(), Cosine())
    assert C.to_dict(again)["times"]["type"] == "tests.config.room.densities.Beta2P"
    told = refused(C.from_dict, data | {"times": "bta_2p"}, allow=ALLOWED)
    assert told.startswith("times takes one of Beta2P, ") and told.endswith("; did you mean Beta2P?")


def test_a_rebuilt_config_can_be_hashed():
    config = System(anything={"a": ({"b": 1},)})
    assert hash(through_json(config)) == hash(through_json(config)) == hash(C.frozen(config))


def test_what_cannot_be_read_is_not_saved(tmp_path):
    assert "only types of genjax" in refused(C.save, System(), tmp_path / "config.json")
    assert "train.steps takes an int" in refused(
        C.save, System(train=Train(steps="3")), tmp_path / "c.json", allow=ALLOWED
    )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_file_is_named(tmp_path):
    path = tmp_path / "config.json"
    assert str(path) in refused(C.read, path)
    for text in ("", '{"type": "gen', "[]", "\xff", '{"type": "os.system"}'):
        path.write_bytes(text.encode("latin-1"))
        assert str(path) in refused(C.read, path)


def test_differences_name_each_leaf_that_differs_and_each_type():
    a, b = System(), System(train=Train(steps=5, betas=(0.9,)), data=Folder("x"), players=(Player(), Player(1.0)))
    assert C.differences(a, b) == [
        ("data", f"{HERE}.Digits", f"{HERE}.Folder"),
        ("players.1.rate", 2e-3, 1.0),
        ("train.steps", 3, 5),
        ("train.betas", [0.9, 0.95], [0.9]),
    ]
    assert C.differences(a, Train()) == [("type", f"{HERE}.System", f"{HERE}.Train")]
