"""What the frame costs: the inner loop of `fit` against a plain loop of the same arithmetic, on the nano SD3 system.

    python benchmarks/frame_overhead.py             --turns 10 --steps 50

The frame's loop is the loader with its seeded, resumable order, rows onto the mesh, `make_update` with its counters,
metrics and its refusal of steps that are not finite, and a report that reads every step and writes a line of metrics.
The plain loop is what one would write in a single file: arrays in memory, a jitted step of loss, optimiser and average,
and the loss read one step late. On the same batches both give the same losses, which is checked first. The wall clock
counts on an idle machine; where it is busy, the CPU time of the process says more. At most 3 % is what we want.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sd3_networks as sd3
import side_by_side as sbs
import tyro

from genjax.data import Loader
from genjax.keys import row_keys
from genjax.parallel.host_memory import keep_freed_memory
from genjax.parallel.mesh import Mesh, replicated, shard_batch
from genjax.tasks.denoising import Denoising
from genjax.training.ema import ema_decay
from genjax.training.report import Report
from genjax.training.state import initial_state
from genjax.training.update import make_update

WANTED = 0.03
"""The most that the frame may add, as a fraction of the plain loop's time."""


@dataclass(frozen=True)
class Options:
    """What is measured, and how often."""

    batch_size: int = 64
    steps: int = 50
    """Steps of a turn; the frame writes one line of metrics in each."""
    turns: int = 10
    """Turns that each loop takes."""


class Frame:
    """The inner loop of `genjax.training.loop.fit`."""

    def __init__(self, task: Denoising, directory: Path):
        self.task, self.mesh = task, task.mesh.build()
        self.loader = Loader(
            task.data.source("train"),
            batch_size=task.train.batch_size,
            seed=task.train.seed,
            transform=task.prepare,
            threads=task.train.data_threads,
        )
        self.state = jax.device_put(initial_state(task, jax.random.key(0)), replicated(self.mesh))
        self.update = make_update(task, self.mesh, shardings=jax.tree.map(lambda leaf: leaf.sharding, self.state))
        self.report = Report(task, directory, 0)
        self.taken, self.pending = 0, None

    def run(self, steps: int) -> None:
        for step in range(self.taken + 1, self.taken + steps + 1):
            self.state, told = self.update(self.state, shard_batch(next(self.loader), self.mesh))
            if self.pending is not None:
                self.report.read(self.pending)
            self.pending = told
            if self.report.is_due(step):
                self.report.read(self.pending)
                self.pending = None
                self.report.tell(step, self.state, self.loader.skipped)
        self.taken += steps
        jax.block_until_ready(self.state)


class Plain:
    """A training script of one file."""

    def __init__(self, task: Denoising):
        train = task.train
        optimizer = task.optimizer.build(train.steps)
        parts = initial_state(task, jax.random.key(0)).parts
        size = jnp.float32(train.batch_size)

        def step(state, batch):
            trained, average, moments, count = state
            keys = row_keys(jax.random.fold_in(jax.random.key(train.seed), count), jnp.arange(train.batch_size))

            def loss(trained):
                return task.loss(parts._replace(trained=trained), batch, keys, {"rows": size}).losses["loss"]

            value, gradient = jax.value_and_grad(loss)(trained)
            updates, moments = optimizer.update(gradient, moments, trained)
            trained = optax.apply_updates(trained, updates)
            average = optax.incremental_update(trained, average, 1 - ema_decay(count, train.ema_decay))
            return (trained, average, moments, count + 1), value

        self.step = jax.jit(step, donate_argnums=0)
        copy = jax.tree.map(jnp.copy, parts.trained)
        self.state = (parts.trained, copy, optimizer.init(parts.trained), jnp.zeros((), jnp.int32))
        self.batches, self.losses = self._batches(task), []

    def _batches(self, task: Denoising) -> Iterator[dict[str, np.ndarray]]:
        source = task.data.source("train")
        examples = [source[i] for i in range(len(source))]
        images = np.stack([example["image"] for example in examples])
        tokens = [task.condition.asked(example["captions"], task.data)["tokens"] for example in examples]
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(len(images))
            for first in range(0, len(order) - task.train.batch_size + 1, task.train.batch_size):
                rows = order[first : first + task.train.batch_size]
                yield {
                    "image": images[rows],
                    "tokens": np.stack([tokens[row][rng.integers(len(tokens[row]))] for row in rows]),
                }

    def run(self, steps: int) -> None:
        pending = None
        for _ in range(steps):
            self.state, loss = self.step(self.state, next(self.batches))
            if pending is not None:
                self.losses.append(float(pending))
            pending = loss
        self.losses.append(float(pending))
        jax.block_until_ready(self.state)


def timed(run: Callable[[int], None], steps: int) -> tuple[float, float]:
    """(wall, CPU) milliseconds of a step."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(steps)
    return 1e3 * (time.perf_counter() - wall) / steps, 1e3 * (time.process_time() - cpu) / steps


def check_losses(frame: Frame, plain: Plain) -> None:
    """Take three steps of both on the same batches."""
    for _ in range(3):
        batch = next(frame.loader)
        frame.state, told = frame.update(frame.state, shard_batch(batch, frame.mesh))
        plain.state, loss = plain.step(plain.state, batch)
        np.testing.assert_allclose(told.means["loss"][0], loss, rtol=1e-5)


def main(options: Options) -> None:
    keep_freed_memory()
    train = replace(
        sd3.SYSTEM.train,
        batch_size=options.batch_size,
        steps=(options.turns + 2) * options.steps + 1,
        log_every=options.steps,
        validate_every=10**9,
        sample_every=10**9,
    )
    task = replace(sd3.SYSTEM, mesh=Mesh(data=1), train=train)
    with tempfile.TemporaryDirectory() as directory:
        frame, plain = Frame(task, Path(directory)), Plain(task)
        check_losses(frame, plain)
        loops = {"plain": plain.run, "frame": frame.run}
        times = {name: [] for name in loops}
        for turn in range(options.turns + 1):
            for name, run in loops.items():
                took = timed(run, options.steps)
                if turn:  # the first turn warms up
                    times[name].append(took)
        frame.report.close()
        frame.loader.close()

    ms = {name: [statistics.median(column) for column in zip(*taken, strict=True)] for name, taken in times.items()}
    wall, cpu = (ms["frame"][i] / ms["plain"][i] - 1 for i in (0, 1))
    rows = [[name, *row] for name, row in ms.items()] + [["the frame adds, %", 100 * wall, 100 * cpu]]
    sbs.print_table(
        f"A step of training, batch {options.batch_size}: median of {options.turns} turns of {options.steps} steps",
        ["", "wall ms", "CPU ms"],
        rows,
    )
    sbs.print_result(
        benchmark="frame_overhead",
        overhead=wall,
        overhead_cpu=cpu,
        wanted=WANTED,
        ms={name: [round(value, 3) for value in row] for name, row in ms.items()},
        batch_size=options.batch_size,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
