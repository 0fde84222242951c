"""Laws of doors: the run decides which options there are, and bad ones are refused before weights are read."""

import io
import os

import pytest
from rich.console import Console

import sample
from genjax.errors import InputError
from genjax.runs.asked import asked, show_runs, writable
from genjax.runs.directory import DEFAULT_SHIPPED, SHIPPED


def test_options_of_the_door_and_of_the_run_stand_side_by_side():
    words = ["--workdir", DEFAULT_SHIPPED, "--num", "3", "--solver", "heun", "--out", "elsewhere"]
    options, found, task, request = asked("sample", words, sample.Options())
    assert (options.out, found.directory) == ("elsewhere", SHIPPED / DEFAULT_SHIPPED)
    assert (request.num, type(request.solver).__name__) == (3, "Heun")
    assert (request.steps, request.guidance) == (task.sampler.steps, task.sampler.guidance)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num", "0"], "--num is the number of samples"),
        (["--solver", "eulr"], "did you mean Euler"),
        (["--truncation", "0.7"], "--truncation is not an option"),
        (["--workdir", "nowhere"], "nowhere is not a run directory"),
        (["--prompt", "x" * 99], "99 bytes"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(words, said):
    words = words if "--workdir" in words else ["--workdir", DEFAULT_SHIPPED, *words]
    with pytest.raises(InputError, match=said):
        asked("sample", words, sample.Options())


def test_an_output_directory_is_made_or_refused(tmp_path):
    assert os.path.isdir(writable(tmp_path / "a" / "b"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        writable(tmp_path / "file" / "out")


def test_runs_of_ones_own_and_those_that_ship_are_listed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_bytes((SHIPPED / DEFAULT_SHIPPED / "config.json").read_bytes())
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"")
    console = Console(file=io.StringIO(), width=200)
    show_runs(console, tmp_path)
    told = console.file.getvalue()
    assert "mine" in told
    assert DEFAULT_SHIPPED in told
    assert "Denoising" in told
