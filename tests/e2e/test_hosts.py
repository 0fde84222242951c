"""Several processes, as on several hosts, train as one does; found through the environment that Slurm gives."""

import contextlib
import json
import os
import signal
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


def two_places() -> list[dict[str, str]]:
    """The environments of two processes of one job."""
    slurm = {"SLURM_JOB_ID": str(free_job()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    return [slurm | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]


def test_two_processes_train_as_one(tmp_path):
    finish(start(tmp_path / "one", {}))
    for process in [start(tmp_path / "two", place, "--mesh.multihost", True) for place in two_places()]:
        finish(process)
    assert len(losses(tmp_path / "two")) == 6
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=1e-5)


PROGRAM = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from flax.linen import LogicallyPartitioned
from genjax.parallel.host import Agreement, whole
from genjax.parallel.mesh import Mesh, batch_share, shard_batch
from genjax.parallel.rules import divided_over, state_shardings
from genjax.training.signals import stop_on_signals

config = Mesh(multihost=True, **eval(sys.argv[1]))
config.start()
mesh = config.build()
params = {"w": LogicallyPartitioned(jax.ShapeDtypeStruct((64, 32), np.float32), ("embed", "mlp"))}
shardings = state_shardings(mesh, params)
params = jax.jit(lambda: {"w": jnp.arange(2048, dtype=jnp.float32).reshape(64, 32)}, out_shardings=shardings)()
assert not params["w"].is_fully_replicated
np.testing.assert_array_equal(whole(params)["w"], np.arange(2048).reshape(64, 32))

def update(params, batch):
    with divided_over(mesh):
        return jax.tree.map(lambda w: w - 1e-3 * (batch["x"].T @ batch["y"]), params)

update = jax.jit(update, out_shardings=shardings)
index, count = batch_share(mesh)
rows = np.random.default_rng(0).normal(size=(4, 96)).astype(np.float32)
own = rows[index * 4 // count : (index + 1) * 4 // count]
expected = np.arange(2048).reshape(64, 32) - 1e-3 * rows[:, :64].T @ rows[:, 64:]
batch = {"x": own[:, :64], "y": own[:, 64:]}
np.testing.assert_allclose(whole(update(params, shard_batch(batch, mesh)))["w"], expected, rtol=1e-5)

agree = Agreement(every=2)
with stop_on_signals() as stop:
    for step in range(1, 100_000):
        params = update(params, shard_batch(batch, mesh))
        if step == 20:
            print("ready", flush=True)
        time.sleep(0.002 * (1 + index))
        if agree(bool(stop)):
            break
whole(params)  # All processes are here, or this would wait for ever.
print("stopped after", step, stop.name, flush=True)
"""


@pytest.mark.parametrize(
    ("mesh", "number"), [("dict(fsdp=2)", signal.SIGTERM), ("dict(tensor=2)", signal.SIGINT)], ids=["TERM", "INT"]
)
def test_a_signal_to_one_host_stops_all_at_the_same_step(mesh, number):
    options = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    words = [sys.executable, "-c", PROGRAM, mesh]
    with contextlib.ExitStack() as stack:
        processes = []
        for place in two_places():
            environment = os.environ | {"JAX_PLATFORMS": "cpu"} | place
            processes.append(stack.enter_context(subprocess.Popen(words, env=environment, **options)))
            stack.callback(processes[-1].kill)
        told = []
        while "ready\n" not in told:
            told.append(processes[1].stdout.readline())
            assert processes[1].poll() is None, "".join(told)
        processes[1].send_signal(number)
        ends = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    (_, _, first, heard), (_, _, second, sent) = (end.splitlines()[-1].split() for end in ends)
    assert first == second
    assert (heard, sent) == ("None", number.name)
