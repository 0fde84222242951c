"""Several processes, as on several hosts, train as one does; found through the environment that Slurm gives."""

import json
import os
import shutil
import signal
import socket
import time

import chex
import jax
import pytest

from genjax import config
from genjax.parallel.mesh import Mesh
from genjax.runs.checkpoints import Checkpoints
from genjax.runs.weights import read_weights
from genjax.training.state import abstract_state, to_trees
from tests.e2e.processes import ROOT, start_training

pytestmark = pytest.mark.e2e

HALF, STEPS = 5, 10
# With this eps a gradient that is rounding stays rounding (tests/systems/test_divided.py says more).
WORDS = (
    "--config", "configs/gan.py:toy", "--train.batch_size", 8, "--generator_every", 2, "--optimizer.eps", 1e-3,
    "--critic_optimizer.eps", 1e-3, "--optimizer.decay", "constant", "--critic_optimizer.decay", "constant",
    "--train.log_every", 1, "--train.validate_every", 100_000,
    "--train.sample_every", 100_000, "--checkpoint.every", 3,
)  # fmt: skip


def start(workdir, environment, *more):
    return start_training(*WORDS, "--workdir", workdir, *more, environment=environment)


def finish(*processes):
    """What they have told, all of which ended well."""
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n\n".join(told)
    return [" ".join(each.split()) for each in told]


def free_job() -> int:
    """A Slurm job number whose port, which jax derives from it, is free."""
    for job in range(os.getpid(), os.getpid() + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", job % 4096 + 61440)):
                return job
    raise RuntimeError("no free port")


def start_two(workdir, *more, second=None):
    """Two processes of one job, of one device each; the second one's environment may say more."""
    job = {"SLURM_JOB_ID": str(free_job()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    places = [job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    places[1] |= second or {}
    return [start(workdir, place, "--mesh.multihost", True, *more) for place in places]


def spoilt(folder, program):
    """The environment of a process that does this before anything else."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(program)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def lines(workdir):
    """What is told of each step, but for how fast it went and what is measured at the end alone."""
    path = workdir / "metrics.jsonl"
    told = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [
        {name: value for name, value in line.items() if name.partition("/")[0] in ("step", "loss", "gradient_norm")}
        for line in told
    ]


def last_state(workdir):
    task = config.read(workdir / "config.json")
    checkpoints = Checkpoints(workdir / "checkpoints")
    restored = checkpoints.restore(to_trees(abstract_state(task, Mesh(data=1).build())))
    checkpoints.close()
    return restored.step, jax.device_get(restored.trees)


def exported(workdir):
    """What model.safetensors holds; it is read only where it is all that the network needs."""
    alone = workdir.with_name(f"{workdir.name}-exported")
    shutil.copytree(workdir, alone, ignore=shutil.ignore_patterns("checkpoints"))
    task = config.read(alone / "config.json")
    parts, _ = read_weights(alone, task)
    return jax.device_get(parts.trained)


def assert_close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The half of a run on one process, and its exported weights."""
    run = tmp_path_factory.mktemp("alone") / "run"
    finish(start(run, {}, "--train.steps", HALF))
    return run, exported(run)


def test_a_state_divided_over_two_processes_is_that_of_one_and_goes_on_anywhere(alone, tmp_path):
    """Half on two processes and half on one; then the other way around: losses, exported weights, checkpoints."""
    one, weights = alone
    run, other = tmp_path / "two-one", tmp_path / "one-two"
    finish(*start_two(run, "--mesh.fsdp", 2, "--train.steps", HALF))
    assert_close(lines(run), lines(one))
    assert_close(exported(run), weights)

    shutil.copytree(one, other)
    (told,) = finish(start(run, {}, "--train.steps", STEPS))
    assert f"at step {HALF} of {STEPS}" in told
    told, silent = finish(*start_two(other, "--mesh.fsdp", 2, "--train.steps", STEPS))
    assert f"at step {HALF} of {STEPS}" in told
    assert "resuming" not in silent
    assert len(lines(run)) == STEPS
    assert_close(lines(run), lines(other))
    assert_close(last_state(run), last_state(other))


def test_what_the_first_process_refuses_ends_all_at_once(alone):
    processes = start_two(alone[0], "--train.steps", HALF, "--train.seed", 1)
    # Not after the five minutes that jax waits for those who have gone.
    told = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], "\n\n".join(told)
    assert "holds a run of another config (train.seed is 0 there and 1 here)" in told[0]
    assert "error: process 0 has failed, and shows why" in told[1]


FULL_DISK = """
from genjax.data import loader
read, seen = loader.Loader.__next__, []
def failing(self):
    seen.append(1)
    if len(seen) == 5:
        raise OSError("no space left on device")
    return read(self)
loader.Loader.__next__ = failing
"""


def test_one_that_fails_between_steps_ends_all_at_once(tmp_path):
    """And what it had to say has been said; the last checkpoint is left to go on from."""
    run = tmp_path / "run"
    words = ("--train.steps", STEPS, "--checkpoint.asynchronous", False)
    processes = start_two(run, *words, second=spoilt(tmp_path / "second", FULL_DISK))
    told = [process.communicate(timeout=200)[0] for process in processes]
    assert all(process.returncode for process in processes), "\n\n".join(told)
    assert "OSError: no space left on device" in told[1]
    (told,) = finish(start(run, {}, *words))
    assert f"resuming {run} at step 3 of {STEPS}" in told


UNREADABLE = """
import orbax.checkpoint as ocp
read = ocp.CheckpointManager.restore
def failing(self, step, **how):
    if step == 5:
        raise OSError("the disk is gone")
    return read(self, step, **how)
ocp.CheckpointManager.restore = failing
"""


def test_what_one_host_cannot_read_none_of_them_goes_on_from(alone, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(alone[0], run)
    first, second = finish(*start_two(run, "--train.steps", STEPS, second=spoilt(tmp_path / "second", UNREADABLE)))
    assert f"at step 3 of {STEPS}" in first
    assert "process 1 has failed, and shows why" in first
    assert "the disk is gone" in second
    assert (run / "unreadable-5").is_dir()


@pytest.mark.parametrize(
    ("mesh", "number"), [("data", signal.SIGTERM), ("tensor", signal.SIGINT)], ids=["data-TERM", "tensor-INT"]
)
def test_a_signal_to_one_host_stops_all_at_the_same_step(alone, tmp_path, mesh, number):
    """What they have trained until then is what one process trains; one process then goes on with it."""
    run = tmp_path / "run"
    processes = start_two(run, f"--mesh.{mesh}", 2, "--train.steps", 100_000)
    deadline = time.monotonic() + 240
    while len(lines(run)) < HALF and time.monotonic() < deadline and all(p.poll() is None for p in processes):
        time.sleep(0.05)
    assert len(lines(run)) >= HALF, [process.poll() for process in processes]
    processes[1].send_signal(number)
    told, _ = finish(*processes)
    assert "stopped by another process after step" in told
    stopped = int(told.partition("another process after step ")[2].partition(";")[0])
    assert max(int(path.name) for path in (run / "checkpoints").iterdir()) == stopped
    assert len(lines(run)) == stopped
    assert_close(lines(run)[:HALF], lines(alone[0]))
    (told,) = finish(start(run, {}, "--train.steps", stopped + 1))
    assert f"resuming {run} at step {stopped}" in told
