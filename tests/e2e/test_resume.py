"""Exact resume: what kill -9 and SIGTERM leave behind goes on as if nothing had happened, bit for bit."""

import json
import random
import signal
import time

import jax
import numpy as np
import pytest

from genjax import config
from genjax.parallel.mesh import Mesh
from genjax.runs.checkpoints import Checkpoints
from genjax.training.state import abstract_state, to_trees
from tests.e2e.processes import start_training

pytestmark = pytest.mark.e2e

STEPS = 80
# Lines at steps 7, 14, ... and checkpoints at steps 3, 6, ...: what was measured and not yet told is in most of them.
WORDS = (
    "--config", "configs/gan.py:toy", "--train.steps", STEPS, "--train.batch_size", 8, "--generator_every", 2,
    "--train.log_every", 7, "--train.validate_every", 1000, "--train.sample_every", 1000, "--checkpoint.every", 3,
)  # fmt: skip
MESHES = {"one device": (1, ()), "fsdp 2 x tensor 2": (4, ("--mesh.fsdp", 2, "--mesh.tensor", 2))}


def start(workdir, mesh):
    devices, more = MESHES[mesh]
    environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return start_training(*WORDS, "--workdir", workdir, *more, environment=environment)


def steps_done(workdir) -> int:
    path = workdir / "metrics.jsonl"
    told = path.read_text().splitlines() if path.exists() else []
    return json.loads(told[-1])["step"] if told and told[-1].endswith("}") else 0


def wait_for(workdir, process, step):
    """Until that step is told, and some checkpoint is whole."""
    deadline = time.monotonic() + 240

    def there():
        return steps_done(workdir) >= step and any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*"))

    while not there() and process.poll() is None and time.monotonic() < deadline:
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


def lines(workdir):
    """All that is told at each step, but for how fast it went."""
    told = list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))
    return [{name: value for name, value in line.items() if not name.endswith("per_second")} for line in told]


def assert_same_run(a, b):
    (step_a, state_a, record_a), (step_b, state_b, record_b) = final(a), final(b)
    assert (step_a, record_a) == (step_b, record_b) == (STEPS, record_b)
    jax.tree.map(np.testing.assert_array_equal, state_a, state_b)
    # The mean losses since each last line are equal, so the batches and the noise of every step were.
    assert lines(a) == lines(b)
    assert [line["step"] for line in lines(a)] == [*range(7, STEPS, 7), STEPS]


@pytest.mark.parametrize("mesh", MESHES)
def test_kill_9_at_a_random_moment_changes_nothing(tmp_path, mesh):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(start(straight, mesh))
    process = start(killed, mesh)
    wait_for(killed, process, random.randrange(STEPS // 4, 3 * STEPS // 4))
    time.sleep(random.random() / 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert steps_done(killed) < STEPS
    assert "resuming" in finish(start(killed, mesh))
    assert_same_run(straight, killed)

    # SIGTERM saves and exits cleanly, and the same holds.
    stopped = tmp_path / "stopped"
    process = start(stopped, mesh)
    wait_for(stopped, process, STEPS // 2)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM after step" in " ".join(finish(process).split())
    assert final(stopped)[0] < STEPS
    finish(start(stopped, mesh))
    assert_same_run(straight, stopped)
