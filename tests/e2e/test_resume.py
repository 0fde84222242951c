"""Exact resume: what kill -9 and SIGTERM leave behind goes on as if nothing had happened, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from genjax import config
from genjax.parallel.mesh import Mesh
from genjax.runs.checkpoints import Checkpoints
from genjax.training.state import abstract_state, to_trees

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
STEPS = 40
WORDS = (
    "--config", "configs/sd3.py", "--train.steps", STEPS, "--train.batch_size", 8, "--train.log_every", 1,
    "--train.validate_every", 1000, "--train.sample_every", 1000, "--checkpoint.every", 3, "--model.depth", 2,
    "--optimizer.warmup_steps", 5,
)  # fmt: skip


def start(workdir, devices, *more):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    words = [sys.executable, "train.py", *map(str, WORDS), "--workdir", str(workdir), *map(str, more)]
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def steps_done(workdir) -> int:
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(workdir, process, step):
    deadline = time.monotonic() + 240
    while steps_done(workdir) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.stdout.read()


def finish(process):
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return told


def final(workdir):
    """The whole last checkpoint: state and position in the data."""
    task = config.read(workdir / "config.json")
    template = to_trees(abstract_state(task, Mesh(data=1).build()))
    checkpoints = Checkpoints(workdir / "checkpoints")
    step, state, record = checkpoints.restore(template)
    checkpoints.close()
    return step, jax.device_get(state), record


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: (line["loss"], line["gradient_norm"]) for line in lines}


def assert_same_run(a, b):
    (step_a, state_a, position_a), (step_b, state_b, position_b) = final(a), final(b)
    assert (step_a, position_a) == (step_b, position_b) == (STEPS, position_b)
    jax.tree.map(np.testing.assert_array_equal, state_a, state_b)
    # Losses of all steps are equal, so the batches and the noise of every step were.
    assert losses(a) == losses(b)
    assert set(losses(a)) == set(range(1, STEPS + 1))


@pytest.mark.parametrize("devices", [1, 4])
def test_kill_9_at_a_random_moment_changes_nothing(tmp_path, devices):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(start(straight, devices))
    process = start(killed, devices)
    wait_for(killed, process, random.randrange(STEPS // 4, 3 * STEPS // 4))
    time.sleep(random.random() / 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert steps_done(killed) < STEPS
    told = finish(start(killed, devices))
    assert "resuming" in told
    assert_same_run(straight, killed)

    # SIGTERM saves and exits cleanly, and the same holds.
    stopped = tmp_path / "stopped"
    process = start(stopped, devices)
    wait_for(stopped, process, STEPS // 2)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM after step" in " ".join(finish(process).split())
    assert final(stopped)[0] < STEPS
    finish(start(stopped, devices))
    assert_same_run(straight, stopped)
