"""Laws of run directories: they belong to one config, and are found again."""

import os
from dataclasses import dataclass

import pytest

from genjax import config
from genjax.errors import InputError
from genjax.runs.directory import (
    DEFAULT_SHIPPED,
    SHIPPED,
    find_run,
    is_shipped,
    open_run,
    shipped_runs,
    steps_saved,
    trained_runs,
)
from genjax.training.task import Train

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


def test_fields_that_say_that_they_may_change_may(tmp_path):
    open_run(tmp_path / "x", Train(log_every=3))
    open_run(tmp_path / "x", Train(log_every=4))
    assert config.read(tmp_path / "x" / "config.json") == Train(log_every=4)


@dataclass(frozen=True)
class Run:
    train: Train = Train()


def test_other_steps_alone_are_asked_about(tmp_path):
    asked = []

    def goes_on(there, here):
        asked.append((there.train.steps, here.train.steps))
        return None if here.train.steps == 9 else "begin anew"

    def run(**train):
        return Run(Train(**train))

    allow = {"goes_on": goes_on}
    open_run(tmp_path / "x", run(steps=7), **allow)
    open_run(tmp_path / "x", run(steps=9), **allow)
    with pytest.raises(InputError, match="train.steps is 9 there and 10 here.*begin anew"):
        open_run(tmp_path / "x", run(steps=10), **allow)
    with pytest.raises(InputError, match="give another --workdir"):
        open_run(tmp_path / "x", run(steps=9, batch_size=3), **allow)
    assert asked == [(7, 9), (9, 10)]
    assert config.read(tmp_path / "x" / "config.json", allow=("genjax.", __name__)).train.steps == 9


def test_only_folders_are_checkpoints(tmp_path):
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    (tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "checkpoints" / "60").write_text("")
    assert steps_saved(tmp_path) == [20]


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
    (tmp_path / "new" / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "old" / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty" / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)  # Killed while it saved.
    assert find_run(None, runs=tmp_path) == (tmp_path / "new", f"the newest below {tmp_path}")
    assert [run.name for run in trained_runs(tmp_path)] == ["new", "old"]


def test_without_runs_a_shipped_one_is_found(tmp_path):
    found = find_run(None, runs=tmp_path)
    assert found.directory == SHIPPED / DEFAULT_SHIPPED
    assert "ships" in found.why
    assert found.directory in shipped_runs()


@pytest.mark.parametrize("run", shipped_runs(), ids=lambda run: run.name)
def test_a_shipped_run_is_found_by_its_name_and_known_for_what_it_is(run):
    assert find_run(run.name).directory == run
    assert is_shipped(run)
    assert not is_shipped(SHIPPED)


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        find_run(tmp_path)
