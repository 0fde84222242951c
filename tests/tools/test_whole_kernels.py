"""A whole suite is left out exactly where it held over the very same sources."""

import subprocess
from types import SimpleNamespace

import pytest

from tools import whole_kernels


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A root with one source, and a suite of one command over it."""
    monkeypatch.setattr(whole_kernels, "ROOT", tmp_path)
    monkeypatch.setattr(whole_kernels, "SUITES", {"pairs": whole_kernels.Suite((("run",),), ("kernels",), ({},))})
    (tmp_path / "kernels" / "room").mkdir(parents=True)
    (tmp_path / whole_kernels.RECORD).parent.mkdir(parents=True)
    (tmp_path / "kernels" / "room" / "one.py").write_text("1")
    return tmp_path


@pytest.fixture
def runs(monkeypatch):
    """The commands that were run; `status` is how they end."""
    found = SimpleNamespace(commands=[], status=0)

    def run(command, **options):
        found.commands.append(command[1:])
        return SimpleNamespace(returncode=found.status)

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_a_suite_that_held_is_left_out_until_a_source_changes_moves_or_is_added(tree, runs, capsys):
    source = tree / "kernels" / "room" / "one.py"
    changes = [
        lambda: None,
        lambda: source.write_text("2"),
        lambda: source.rename(source.with_name("two.py")),
        lambda: source.write_text("2"),
    ]
    for count, change in enumerate(changes, start=1):
        change()
        assert whole_kernels.main(["pairs", "--check"]) == 1 and len(runs.commands) == count - 1
        assert whole_kernels.main(["pairs"]) == 0 and len(runs.commands) == count
        capsys.readouterr()
        assert whole_kernels.main(["pairs"]) == 0 and len(runs.commands) == count
        assert capsys.readouterr().out.startswith("skipped: ")
        assert whole_kernels.main(["pairs", "--check"]) == 0
    assert whole_kernels.main(["pairs", "--always"]) == 0 and len(runs.commands) == len(changes) + 1


def test_a_suite_that_fails_leaves_no_record_and_its_exit_code(tree, runs):
    runs.status = 3
    assert whole_kernels.main(["pairs"]) == 3
    assert whole_kernels.recorded(tree) == {}
    assert whole_kernels.main(["pairs", "--check"]) == 1


def test_sources_of_the_real_suites_exist():
    for suite in whole_kernels.SUITES.values():
        assert all((whole_kernels.ROOT / source).exists() for source in suite.sources)
        assert len(suite.commands) == len(suite.environments)
