"""Laws of the evaluation door."""

import json

import pytest

from genjax import config, evaluate
from genjax.errors import InputError
from genjax.training.run_directory import SHIPPED


def test_it_writes_what_it_prints_beside_the_run(tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((SHIPPED / name).read_bytes())
    evaluate.main(["--workdir", str(tmp_path), "--num", "20", "--steps", "2", "--guidance", "1", "--seed", "4"])
    results = json.loads((tmp_path / "evaluation.json").read_text())
    told = capsys.readouterr().out
    for name, value in results.items():
        assert name.replace("_", " ") in told
        assert (f"{value:.4f}" if isinstance(value, float) else str(value)) in told
    assert (results["samples"], results["nfe"], results["guidance"], results["seed"]) == (20, 2, 1.0, 4)


def test_too_few_samples_are_refused():
    with pytest.raises(InputError, match="at least 2"):
        evaluate.main(["--num", "1"])


def test_the_shipped_evaluation_belongs_to_the_shipped_config():
    results = json.loads((SHIPPED / "evaluation.json").read_text())
    task = config.read(SHIPPED / "config.json")
    assert results["step"] == task.train.steps
    assert (results["solver"], results["steps"]) == (task.sampler.solver, task.sampler.steps)
    assert results["conditional_accuracy"] >= 0.97
    assert results["frechet_distance"] <= 1.0
    assert results["nearest_neighbour_ratio"] >= 0.85
