"""Laws of the record of what made a shipped run."""

import json
import shutil

import grimp
import pytest

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
    assert shipped.changes(run, graph) is None or (run / shipped.RECORD).unlink() is None
    assert shipped.changes(run, graph) is None
    record = shipped.sources(run, graph)
    (run / shipped.RECORD).write_text(json.dumps(record))
    assert shipped.changes(run, graph) == []
    (run / shipped.RECORD).write_text(json.dumps(record | {"genjax.training.optimizer": "0"}))
    assert shipped.changes(run, graph) == ["genjax.training.optimizer"]
