"""The ahead-of-time tool: compiles for a GPU that is not there, and holds what it measures to a budget."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools import aot

TOOL = Path(aot.__file__)


@pytest.fixture
def needs_packages():
    if reason := aot.missing():
        pytest.skip(reason)


@pytest.mark.slow
def test_a_kernel_compiles_without_a_gpu_within_its_budget(needs_packages):
    run = subprocess.run([sys.executable, TOOL, "--only", "mosaic/.*/64/causal"], capture_output=True, text=True)
    last = json.loads(run.stdout.splitlines()[-1])
    assert (run.returncode, last) == (0, {"checked": 3, "violations": []}), run.stdout + run.stderr


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(aot, "NEEDED", {"no_such_module": "some-wheel", "json": "never-missing"})
    assert aot.missing() == "ahead-of-time compilation needs: pip install --no-deps some-wheel"


ROW = dict(registers=168, spill_bytes=0, shared_memory=1000, wgmma=4, tma=2)


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({}, None),
        (dict(registers=160, wgmma=5), None),
        (dict(registers=169), "registers 169, budget 168"),
        (dict(shared_memory=1001), "shared_memory 1001, budget 1000"),
        (dict(spill_bytes=8), "8 bytes spilled"),
        (dict(wgmma=0), "no wgmma instruction"),
        (dict(tma=0), "no tma instruction"),
    ],
)
def test_a_budget_is_kept_or_its_breach_is_named(found, wrong):
    lines = aot.violations("mosaic/forward/64/full", ROW | found, ROW)
    assert bool(lines) == (wrong is not None) and all(line.startswith("mosaic/forward/64/full: ") for line in lines)
    assert wrong is None or any(wrong in line for line in lines)


def test_the_exit_code_and_the_last_line_tell_of_a_breach_and_write_ends_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(aot, "missing", lambda: None)
    monkeypatch.setattr(aot, "kernels", lambda only: {"triton/one": ROW | dict(registers=200)})
    monkeypatch.setattr(aot, "BUDGET", tmp_path / "budget.json")
    aot.BUDGET.write_text(json.dumps({"triton/one": ROW, "triton/gone": ROW, "sd3_medium/xla": dict(temp_bytes=1)}))
    assert aot.main([]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"checked": 1, "violations": ["triton/one: registers 200, budget 168"]}
    assert aot.main(["--write"]) == 0
    assert json.loads(aot.BUDGET.read_text()).keys() == {"triton/one", "sd3_medium/xla"}  # models were not measured
    assert aot.main([]) == 0


def test_a_kernel_without_a_budget_is_named():
    assert "not in aot_budget.json" in aot.violations("triton/new", ROW, None)[0]


def test_spills_of_mosaic_kernels_cannot_be_budgeted():
    assert aot.violations("mosaic/dq/64/full", ROW | dict(spill_bytes=8), ROW | dict(spill_bytes=8))


def test_a_matrix_of_tokens_is_found_whatever_its_shape():
    hlo = "%a = bf16[1,24,4429,4429]{3,2,1,0} f(), %b = f32[103,43,4429] g(), %c = bf16[4429,6144] h(), %d = f32[] i()"
    assert aot.square_buffers(hlo, 4429) == {"1,24,4429,4429", "103,43,4429"}
    assert aot.square_buffers(hlo, 4428) == {"1,24,4429,4429", "103,43,4429"}  # padded by one


def test_every_tuned_kernel_has_a_budget():
    from pallas_kernels.mosaic.resources import names

    assert {f"mosaic/{name}" for name in names()} <= json.loads(aot.BUDGET.read_text()).keys()
