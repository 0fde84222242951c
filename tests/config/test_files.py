"""Laws of config files: they may use packages of their own, whose runs are read where the package is allowed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from genjax import config as C
from tests.config.conftest import HERE, refused
from tests.config.room.system import System

TASK = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Task:
    size: "int" = 3
    weights: dict = dataclasses.field(default_factory=lambda: {"a": 1.0})
"""
CONFIG = "from {module} import Task\nVARIANTS = {{'only': lambda: Task(size=4)}}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "task.py").write_text(TASK)
    (tmp_path / "beside_it.py").write_text(TASK)
    (tmp_path / "mine.py").write_text(CONFIG.format(module="my_package.task"))
    (tmp_path / "near.py").write_text(CONFIG.format(module="beside_it"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_package", "my_package.task", "beside_it"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(("file", "package"), [("mine", "my_package"), ("near", "beside_it")])
def test_a_config_of_another_package_is_loaded_recorded_and_read_where_that_is_allowed(folder, file, package):
    config, name = C.load(f"{folder}/{file}.py")
    assert (config.size, name, C.packages_of(config)) == (4, f"{file}-only", (package,))
    hash(config)
    allow = C.allowed(C.packages_of(config))
    assert allow == ("genjax.", f"{package}.")
    C.save(config, folder / "run" / "config.json", allow=allow)
    assert C.read(folder / "run" / "config.json", allow=allow) == config
    told = refused(C.read, folder / "run" / "config.json")
    assert told.endswith(f"; name its package with --allow {package} to import it, which runs its code")
    assert "Task': only types of genjax are accepted" in told


def test_a_value_that_a_field_does_not_take_is_refused_where_the_file_is_loaded(tmp_path):
    system = f"from {HERE} import Player, System, Train\n"
    for field, sentence in {
        "times=Player()": "times takes a Density, not a Player",
        "times=3": "times takes a Density, not 3",
        "train=Train(steps=0.5)": "train.steps takes an int, not 0.5",
    }.items():
        (tmp_path / "wrong.py").write_text(system + f"VARIANTS = {{'only': lambda: System({field})}}\n")
        assert refused(C.load, f"{tmp_path}/wrong.py") == f"{tmp_path}/wrong.py: {sentence}"


def test_a_variant_that_cannot_be_built_is_named(tmp_path):
    """Its parts are built by Python, without the places that they are for."""
    program = (
        f"from {HERE} import LogitNormal, System\nVARIANTS = {{'wide': lambda: System(times=LogitNormal(std=-1.0))}}"
    )
    (tmp_path / "wrong.py").write_text(program)
    assert refused(C.load, f"{tmp_path}/wrong.py") == (
        f"variant 'wide' of {tmp_path}/wrong.py cannot be built: LogitNormal takes a positive std, not -1.0"
    )


def test_a_run_is_read_in_another_process_from_the_working_directory(folder):
    record = folder / "config.json"
    record.write_text(json.dumps({"type": "my_package.task.Task", "size": 5}))
    program = "from genjax import config; print(config.read('config.json', allow=config.allowed(('my_package',))).size)"
    root = str(Path(__file__).parents[2])
    words = [sys.executable, "-c", f"import sys; sys.path[0] = {root!r}; {program}"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr


def test_a_package_that_is_not_there_is_named():
    told = refused(C.from_dict, {"type": "no_such_package.Task"}, allow=C.allowed("no_such_package"))
    assert told.endswith("there is no package no_such_package on Python's path (PYTHONPATH)")


def test_nothing_beside_a_config_file_hides_a_package(folder):
    (folder / "docstring_parser.py").write_text("raise SystemExit('hidden')")
    C.load(f"{folder}/near.py")
    program = f"from genjax import config; config.load({str(folder / 'near.py')!r}); import einops, tyro"
    (folder / "einops.py").write_text("raise SystemExit('hidden')")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_config_file_that_defines_its_own_types_is_refused(folder):
    (folder / "own.py").write_text(TASK + "VARIANTS = {'only': Task}\n")
    told = refused(C.load, f"{folder}/own.py")
    assert told.startswith(f"{folder}/own.py defines Task itself, and its runs could not be read without it: ")


def test_a_variant_that_returns_no_config_is_refused(folder):
    (folder / "none.py").write_text("VARIANTS = {'only': lambda: None}\n")
    assert refused(C.load, f"{folder}/none.py") == (
        f"variant 'only' of {folder}/none.py returns no config, a dataclass, but None"
    )


def test_the_packages_of_a_config_are_those_of_all_its_types():
    assert C.packages_of(System()) == (HERE.partition(".")[0],)
    assert C.allowed(()) == C.allowed(None) == C.allowed("genjax") == ("genjax.",)
    assert C.allowed(("a.b", "c")) == ("genjax.", "a.b.", "c.")
    for package in ("../x", "a-b", ""):
        assert refused(C.allowed, (package,)).startswith("--allow takes names of packages")
