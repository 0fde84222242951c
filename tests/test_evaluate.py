"""Laws of the evaluation door."""

import json

import pytest

from genjax import config, evaluate
from genjax.errors import InputError
from genjax.runs.directory import DEFAULT_SHIPPED, SHIPPED

RUN = SHIPPED / DEFAULT_SHIPPED


def test_it_writes_what_it_prints_beside_the_run(tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((RUN / name).read_bytes())
    evaluate.main(["--workdir", str(tmp_path), "--num", "20", "--steps", "2", "--guidance", "1", "--seed", "4"])
    results = json.loads((tmp_path / "evaluation.json").read_text())
    told = capsys.readouterr().out
    for name, value in results.items():
        assert name.replace("_", " ") in told
        assert (f"{value:.4f}" if isinstance(value, float) else str(value)) in told
    assert (results["samples"], results["nfe"], results["guidance"], results["seed"]) == (20, 2, 1.0, 4)


def test_too_few_samples_are_refused():
    with pytest.raises(InputError, match="at least 2"):
        evaluate.main(["--workdir", DEFAULT_SHIPPED, "--num", "1"])


def test_figures_of_a_run_that_ships_are_not_written_into_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    evaluate.main(["--workdir", DEFAULT_SHIPPED, "--num", "20", "--steps", "2", "--guidance", "1"])
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*")} == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation.json", "evaluations.jsonl"}


def test_the_shipped_evaluation_belongs_to_the_shipped_config():
    results = json.loads((RUN / "evaluation.json").read_text())
    task = config.read(RUN / "config.json")
    assert results["step"] == task.train.steps
    assert (results["solver"], results["steps"]) == (type(task.sampler.solver).__name__, task.sampler.steps)
    assert results["conditional_accuracy"] >= 0.97
    assert results["frechet_distance"] <= 1.0
    assert results["nearest_neighbour_ratio"] >= 0.85
