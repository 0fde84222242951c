"""Laws of moved things: an old record is read as what it is now."""

import pytest

from genjax import config as C
from genjax import data
from genjax.config.kinds import GENJAX, dataclass_named, fields
from genjax.config.moved import MOVED, moved_type
from genjax.diffusion import solvers
from tests.config.conftest import ALLOWED, HERE, refused
from tests.config.room.system import Net, System, Train


@pytest.fixture
def moved(monkeypatch):
    for old, new in {
        "genjax.old.Net": "genjax.later.Net",
        "genjax.later.Net": f"{HERE}.Net",
        "genjax.old.Net.layers": "depth",
        f"{HERE}.Train.updates": "steps",
        f"{HERE}.Train.nesterov": "",
    }.items():
        monkeypatch.setitem(MOVED, old, new)


def test_a_type_is_found_where_it_is_now_and_its_fields_by_their_names_of_now(moved):
    assert C.from_dict({"type": "genjax.old.Net", "layers": 3}, allow=ALLOWED) == Net(depth=3)
    data = C.to_dict(System()) | {"model": {"type": "genjax.later.Net", "depth": 3}}
    del data["train"]["steps"]
    data["train"] |= {"updates": 7, "nesterov": True}
    assert C.from_dict(data, allow=ALLOWED) == System(model=Net(depth=3), train=Train(steps=7))


def test_a_field_recorded_by_both_names_is_refused(moved):
    data = {"type": f"{HERE}.Train", "steps": 3, "updates": 3}
    assert refused(C.from_dict, data, allow=ALLOWED) == "updates is steps now, and steps is recorded too"


def test_a_moved_type_has_to_be_allowed_where_it_is_now(moved):
    assert "only types of genjax" in refused(C.from_dict, {"type": "genjax.old.Net", "layers": 3})


def test_what_is_listed_as_moved_leads_to_what_there_is():
    for old, new in MOVED.items():
        if "." in new:
            assert dataclass_named(moved_type(new), old, GENJAX)
        else:
            kind = dataclass_named(moved_type(old.rpartition(".")[0]), old, GENJAX)
            assert new in ("", *fields(kind)), old


@pytest.mark.parametrize("name", ["TwoMoons", "EightGaussians", "TwentyFiveGaussians", "Rings"])
def test_a_run_of_a_blurred_density_is_read_by_the_name_it_was_recorded_with(name):
    old = C.from_dict({"type": f"genjax.data.densities.{name}", "points": 7})
    assert old == getattr(data, name)(points=7)
    assert C.to_dict(old)["type"] == f"genjax.data.blurred.{name}"


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPMpp2M"])
def test_a_run_of_a_solver_is_read_by_the_name_it_was_recorded_with(name):
    assert C.from_dict({"type": f"genjax.diffusion.solvers.{name}"}) == getattr(solvers, name)()
