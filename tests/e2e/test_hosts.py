"""Several processes, as on several hosts, train as one does; found through the environment that Slurm gives."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
WORDS = (
    "--config", "configs/sd3.py", "--train.steps", 6, "--train.batch_size", 8, "--model.depth", 1,
    "--train.log_every", 1,
    "--train.validate_every", 1000, "--train.sample_every", 1000, "--checkpoint.every", 3,
)  # fmt: skip


def start(workdir, environment, *more):
    words = [sys.executable, "train.py", *map(str, WORDS), "--workdir", str(workdir), *map(str, more)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def free_job() -> int:
    """A Slurm job number whose port, which jax derives from it, is free."""
    for job in range(os.getpid(), os.getpid() + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", job % 4096 + 61440)):
                return job
    raise RuntimeError("no free port")


def test_two_processes_train_as_one(tmp_path):
    finish(start(tmp_path / "one", {}))
    slurm = {"SLURM_JOB_ID": str(free_job()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    places = [slurm | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    for process in [start(tmp_path / "two", place, "--mesh.multihost", True) for place in places]:
        finish(process)
    assert len(losses(tmp_path / "two")) == 6
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=1e-5)
