"""Laws of moved things: an old record is read as what it is now."""

import pytest

from genjax import config as C
from genjax import data
from genjax.config.kinds import GENJAX, dataclass_named, fields, type_name
from genjax.config.moved import MOVED, moved_type
from genjax.diffusion import solvers
from genjax.diffusion.grids import SD3Times, ShiftedTimes
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


def test_a_system_of_texts_recorded_before_there_were_conditions_is_one_of_denoising():
    """With its encoder and dropout where they are now, and nothing clipped, as then."""
    record = {
        "type": "genjax.tasks.text_to_image.TextToImage",
        "text": {"type": "genjax.models.byte_encoder.ByteEncoder", "max_length": 24},
        "caption_dropout": 0.25,
        "sampler": {"type": "genjax.tasks.text_to_image.Sampler", "steps": 7, "shift": 2.0, "spacing": "sd3"},
    }
    task = C.from_dict(record)
    assert type_name(type(task)) == "genjax.tasks.denoising.Denoising"
    assert (task.condition.encoder.max_length, task.condition.dropout, task.sampler.steps) == (24, 0.25, 7)
    assert type(task.space).__name__ == "Latents"
    assert task.sampler.grid == SD3Times(2.0)
    assert C.from_dict(C.to_dict(task)) == task
    del record["text"], record["caption_dropout"], record["sampler"]["shift"], record["sampler"]["spacing"]
    assert C.from_dict(record).condition == type(task.condition)()
    assert C.from_dict(record).sampler.grid == ShiftedTimes(3.0)


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPMpp2M"])
def test_a_run_of_a_solver_is_read_by_the_name_it_was_recorded_with(name):
    assert C.from_dict({"type": f"genjax.diffusion.solvers.{name}"}) == getattr(solvers, name)()
