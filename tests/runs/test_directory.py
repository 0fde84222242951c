"""Laws of run directories: they belong to one config, and are found again."""

import os

import pytest

from genjax import config
from genjax.errors import InputError
from genjax.training import run_directory
from genjax.training.loop import Train
from genjax.training.optimizer import AdamW
from genjax.training.run_directory import find_run, open_run

TASK = Train(steps=7)


def test_a_new_directory_records_the_config(tmp_path):
    open_run(tmp_path / "runs" / "x", TASK)
    assert config.read(tmp_path / "runs" / "x" / "config.json") == TASK


def test_the_same_config_may_go_on(tmp_path):
    open_run(tmp_path / "x", TASK)
    record = (tmp_path / "x" / "config.json").stat().st_mtime_ns
    open_run(tmp_path / "x", Train(steps=7))
    assert (tmp_path / "x" / "config.json").stat().st_mtime_ns == record


def test_another_config_is_refused_with_what_differs(tmp_path):
    open_run(tmp_path / "x", TASK)
    with pytest.raises(InputError, match=r"another config \(steps is 7 there and 8 here\); give another --workdir"):
        open_run(tmp_path / "x", Train(steps=8))
    assert config.read(tmp_path / "x" / "config.json") == TASK


def test_fields_that_leave_the_arithmetic_alone_may_change(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "MAY_CHANGE", ("warmup",))
    open_run(tmp_path / "x", AdamW(warmup_steps=3))
    open_run(tmp_path / "x", AdamW(warmup_steps=4))
    assert config.read(tmp_path / "x" / "config.json") == AdamW(warmup_steps=4)


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match="holds files but no config.json"):
        open_run(tmp_path, TASK)


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        open_run(tmp_path / "file" / "x", TASK)


def test_the_newest_run_with_weights_is_found(tmp_path):
    for age, name in enumerate(["new", "old", "empty"]):
        open_run(tmp_path / name, TASK)
        os.utime(tmp_path / name / "config.json", (1000 - age, 1000 - age))
    for name in ("new", "old"):
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    assert find_run(None, runs=tmp_path) == tmp_path / "new"


def test_without_runs_the_shipped_one_is_found(tmp_path):
    assert find_run(None, runs=tmp_path) == run_directory.SHIPPED
    assert (run_directory.SHIPPED / "config.json").is_file()


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        find_run(tmp_path)
