"""Laws of the page of results: what was made is not made again, and a claim holds as its figures say."""

import importlib.util
import json
from pathlib import Path

import pytest

from genjax import config, evaluate
from genjax.tasks.denoising import Denoising
from genjax.tasks.noisy_classification import NoisyClassification

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("results", ROOT / "tools/results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)

FIGURES = {"frechet_distance": 0.5, "solver": "Euler", "steps": 3, "nfe": 6, "guidance": 2.0}
LINES = [{"step": 50, "steps_per_second": 10.0}, {"step": 150, "steps_per_second": 20.0}]


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Calls, of which each training leaves a run and each evaluation its figures."""
    calls = []

    def call(words):
        calls.append(words)
        workdir = tmp_path / "runs" / "flow"
        workdir.mkdir(parents=True, exist_ok=True)
        if words.startswith("train.py"):
            (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, LINES)))
            (workdir / "model.safetensors").touch()
        else:
            (workdir / "evaluation.json").write_text(json.dumps(FIGURES))

    monkeypatch.setattr(results, "call", call)
    monkeypatch.setattr(results, "KEPT", tmp_path / "results.json")
    return calls


def test_what_has_been_trained_or_measured_is_not_done_again(called, tmp_path):
    kept, run = {}, results.Run("rectified_flow.py", ("", "--steps 1"))
    results.make(tmp_path / "runs", "flow", run, kept)
    assert [words.split()[0] for words in called] == ["train.py", "-m", "-m"]
    assert (kept["flow"]["steps"], kept["flow"]["seconds"]) == (150, 10)
    read = json.loads((tmp_path / "results.json").read_text())
    results.make(tmp_path / "runs", "flow", results.Run("rectified_flow.py", ("", "--steps 1", "--steps 2")), read)
    assert len(called) == 4 and called[-1].endswith("--steps 2")


def test_every_way_and_claim_is_one_that_its_run_can_be_asked():
    """By the words of the door, for the config itself."""
    for run in results.RUNS.values():
        task = config.load(str(ROOT / "configs" / run.config))[0]
        assert isinstance(task, Denoising | NoisyClassification)
        for way in run.ways:
            request = task.request("evaluate")
            config.parse_with(way.format(runs="runs").split(), evaluate.Options(), lambda _, request=request: request)
    for claim in results.CLAIMS:
        for run, way in (claim.one, claim.other):
            assert way in results.RUNS[run].ways


@pytest.mark.parametrize(("below", "says"), [(True, "yes"), (False, "**no**")])
def test_a_claim_holds_as_its_figures_say(below, says):
    claim = results.Claim("a beats b", "frechet_distance", below, ("a", "x"), ("b", "y"))
    kept = {"a": {"ways": {"x": {"frechet_distance": 0.25}}}, "b": {"ways": {"y": {"frechet_distance": 0.5}}}}
    assert results.verdict(claim, kept) == f"| a beats b | frechet distance | 0.250 | 0.500 | {says} |"
    assert results.verdict(claim, {"a": kept["a"]}).endswith("| not measured |")


def test_the_page_has_a_row_for_everything_measured():
    record = {
        "config": "c.py",
        "steps": 7,
        "seconds": 9,
        "ways": {"": FIGURES, "--steps 3": FIGURES | {"bits_per_dim_ode": 1.5}},
    }
    rows = [line for line in results.page({"flow": record}).splitlines() if line.startswith("| `c.py`")]
    assert rows == [
        "| `c.py` | 7 | 9 | Euler, 3 | 6 | 2 | 0.50 |  |  |  |",
        "| `c.py` | 7 | 9 | Euler, 3 | 6 | 2 | 0.50 |  | 1.500 |  |",
    ]
