"""Laws of the record of what made a shipped run."""

import json
import shutil

import grimp
import pytest

from genjax import config
from genjax.errors import InputError
from genjax.runs.directory import DEFAULT_SHIPPED, SHIPPED
from tools import shipped


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(*shipped.PACKAGES)


@pytest.fixture
def run(tmp_path):
    shutil.copytree(SHIPPED / DEFAULT_SHIPPED, tmp_path / "run")
    return tmp_path / "run"


def test_words_about_code_are_no_change_of_it():
    code = 'x = 1\n\n\ndef f():\n    return "text"\n'
    told = '"""About."""\n\nx = 1  # one\n"""The one."""\n\n\ndef f():\n    """Says."""\n    return "text"\n'
    assert shipped.fingerprint(code) == shipped.fingerprint(told)
    assert shipped.fingerprint(code) != shipped.fingerprint(code.replace("1", "2"))
    assert shipped.fingerprint(code) != shipped.fingerprint(code.replace("text", "texts"))


def test_a_run_depends_on_its_network_and_step_and_not_on_how_it_is_shown(run, graph):
    modules = shipped.sources(run, graph)
    assert {"genjax.training.update", "genjax.training.optimizer"} & modules.keys()
    assert not [name for name in modules if name.startswith(("genjax.config", "genjax.runs", "genjax.metrics"))]
    assert any(name.startswith("pallas_kernels") for name in modules)


def test_a_change_makes_a_run_stale_and_names_the_module(run, graph):
    (run / shipped.RECORD).unlink()
    assert shipped.changes(run, graph) is None
    shipped.write(run, graph, [])
    assert shipped.changes(run, graph) == []
    record = json.loads((run / shipped.RECORD).read_text())
    record["modules"] |= {"genjax.training.optimizer": "0"}
    (run / shipped.RECORD).write_text(json.dumps(record))
    assert shipped.changes(run, graph) == ["genjax.training.optimizer"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A small run that ships, which began as the directory says; its record is of other sources."""
    monkeypatch.setattr(shipped, "FIRST_STEPS", 4)
    task = config.load("configs/gan.py:toy")[0]
    task = config.override(task, {"train.steps": 10**6, "train.log_every": 2, "train.batch_size": 8})
    config.save(task, tmp_path / "made" / "config.json")
    shipped._train_first_steps(task, tmp_path / "workdir")
    began = shipped.first_steps(tmp_path / "workdir")
    (tmp_path / "made" / shipped.RECORD).write_text(json.dumps({"first_steps": began, "modules": {}}))
    return tmp_path / "made"


@pytest.mark.slow
def test_a_stale_run_that_begins_as_it_did_is_renewed_and_another_is_not(made, graph):
    assert shipped.changes(made, graph)
    shipped.repeat(made, graph)
    assert shipped.changes(made, graph) == []

    record = json.loads((made / shipped.RECORD).read_text())
    name = next(name for name in record["first_steps"][-1] if name.startswith("loss"))
    record["first_steps"][-1][name] *= 1.01
    (made / shipped.RECORD).write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"does not make made: {name} at step 4 is .* and was"):
        shipped.repeat(made, graph)


def test_a_difference_is_of_a_thousandth_and_of_every_number_at_every_step():
    then = [{"step": 50, "loss": 1.0, "gradient_norm": 2.0}, {"step": 100, "loss": 0.5, "gradient_norm": 2.0}]
    assert not shipped.difference(then, then)
    assert not shipped.difference(then, [then[0], then[1] | {"loss": 0.5004}])
    assert shipped.difference(then, [then[0], then[1] | {"loss": 0.501}]) == "loss at step 100 is 0.501 and was 0.5"
    assert shipped.difference(then, then[:1]) == "1 lines tell of the first steps, and not the same 2"
    assert "gradient_norm is not told" in shipped.difference(then, [{"step": 50, "loss": 1.0}, then[1]])


def test_what_has_not_begun_cannot_be_recorded(tmp_path):
    with pytest.raises(InputError, match="is no run directory"):
        shipped.first_steps(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 50, "loss": 1.0}\n')
    with pytest.raises(InputError, match="does not tell what was measured at step 100"):
        shipped.first_steps(tmp_path)
    with pytest.raises(InputError, match="belong together"):
        shipped.main(shipped.Shipped(record="sd3-nano"))
    with pytest.raises(InputError, match="is no run directory"):
        shipped.main(config.parse(["--record", "sd3-nano", "--workdir", str(tmp_path / "nowhere")], shipped.Shipped()))
