"""The training loop: batches in, updates, and everything that people look at meanwhile.

It knows a task only by the few functions of `Task`, and moves its state as a pytree. It never waits for a step that has
just been sent off: metrics are read one step late.
"""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree
from rich.console import Console

from genjax.data.loader import Loader
from genjax.errors import InputError
from genjax.interop.trees import write_tree
from genjax.parallel.host_memory import keep_freed_memory
from genjax.parallel.mesh import Mesh, replicated, shard_batch, wait_for_all
from genjax.training.checkpoints import Checkpoint, Checkpoints
from genjax.training.optimizer import AdamW
from genjax.training.precision import Precision
from genjax.training.progress import progress_bar
from genjax.training.report import Report, local
from genjax.training.run_directory import open_run
from genjax.training.signals import stop_on_signals
from genjax.training.update import Loss, TrainState, initial_state, make_update
from genjax.training.writers import log_to

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Train:
    """How long, on how much at a time, and what is looked at meanwhile."""

    steps: int = 100_000
    """Number of batches to train on."""
    batch_size: int = 256
    """Samples in a batch, over all devices and micro-batches."""
    accumulate: int = 1
    """Micro-batches into which each device splits its share, to save memory."""
    seed: int = 0
    """Seed of the parameters, of the order of the data and of all noise."""
    precision: Precision = "fp32"
    """What the network computes in; parameters and sums stay in float32."""
    ema_decay: float = 0.9999
    """Longest memory of the average of the parameters that samples are drawn with."""
    max_skipped: int = 10
    """Steps in a row whose loss or gradient may be nan or inf before the run gives up; each is skipped."""
    data_threads: int = 4
    """Threads that read data ahead; 0 is fastest for small data that lies in memory."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl and the log."""
    validate_every: int = 500
    """Steps between losses on the fixed validation set."""
    sample_every: int = 500
    """Steps between pictures of samples."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "validate_every", "sample_every", "max_skipped"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} is at least 1, not {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"train.ema_decay lies in [0, 1), not at {self.ema_decay}")
        if self.seed < 0:
            raise InputError(f"train.seed is at least 0, not {self.seed}")


class Task(Protocol):
    """What the loop needs of a system."""

    data: Any
    optimizer: AdamW
    train: Train
    checkpoint: Checkpoint
    mesh: Mesh
    loss: Loss

    def check(self) -> None:
        """Raise InputError where the parts of the config do not fit each other."""

    def init(self, key: Key[Array, ""]) -> PyTree[Array]:
        """Fresh parameters."""

    def prepare(self, example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The arrays of one row of a batch, on the host."""

    def validate(self, params: PyTree[Array]) -> dict[str, float]:
        """Named losses on a fixed set."""

    def preview(self, params: PyTree[Array]) -> np.ndarray:
        """A picture (H, W, C) uint8 of a few fixed samples."""


def fit(task: Task, directory: Path, *, console: Console | None = None) -> TrainState:
    """Train `task` in a run directory until its last step, from where the directory's newest checkpoint left it.

    Returns the last state. A signal to stop saves and returns early. Raises InputError for what cannot be trained, and
    FloatingPointError when too many steps in a row were not finite.
    """
    task.mesh.start()
    keep_freed_memory()
    task.check()
    train, mesh = task.train, task.mesh.build()
    if train.batch_size % (mesh.size * train.accumulate):
        raise InputError(
            f"train.batch_size is {train.batch_size}, and does not split evenly over {mesh.size} devices times"
            f" {train.accumulate} micro-batches"
        )
    with contextlib.ExitStack() as until_the_end:
        loader = Loader(
            task.data.source("train"),
            batch_size=train.batch_size,
            seed=train.seed,
            transform=task.prepare,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=train.data_threads,
        )
        until_the_end.callback(loader.close)
        console = console or Console()
        if jax.process_index() == 0:
            open_run(directory, task)
            log_to(directory, console)
        wait_for_all("the run directory is there")

        # -------------------------------------------------------------- the state: fresh, or where a checkpoint left it
        optimizer = task.optimizer.build(train.steps)
        whole = replicated(mesh)

        def fresh(key):
            return initial_state(task.init(key), optimizer)

        key = jax.random.fold_in(jax.random.key(train.seed), 2**31 - 1)
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), jax.eval_shape(fresh, key)
        )
        checkpoints = Checkpoints(directory / "checkpoints", task.checkpoint)
        until_the_end.callback(checkpoints.close)
        restored = checkpoints.restore(template)
        if restored is None:
            start, state = 0, jax.jit(fresh, out_shardings=whole)(key)
        else:
            start, state, position = restored
            checkpoints.set_aside_after(start)
            loader.restore(position)
            log.info("resuming %s at step %d of %d", directory, start, train.steps)
        count = sum(leaf.size for leaf in jax.tree.leaves(template.params))
        kind = jax.devices()[0].device_kind
        log.info("%s: %s parameters, %d x %s, batch %d", directory, f"{count:,}", mesh.size, kind, train.batch_size)

        # -------------------------------------------------------------- steps
        update = make_update(
            task.loss,
            optimizer,
            mesh,
            seed=train.seed,
            all_reduce_algorithm=task.mesh.all_reduce,
            micro_batches=train.accumulate,
            ema_longest=train.ema_decay,
        )
        report = Report(task, directory, start)
        until_the_end.callback(report.close)
        stop = until_the_end.enter_context(stop_on_signals())
        bar = until_the_end.enter_context(progress_bar(console, train.steps, start))
        pending = None
        for step in range(start + 1, train.steps + 1):
            state, metrics = update(state, shard_batch(next(loader), mesh))
            if pending is not None:
                report.read(pending)  # The device is at work on this step while the last one's metrics are read.
            pending = metrics
            last = step == train.steps or bool(stop)
            if report.is_due(step) or step % task.checkpoint.every == 0 or last:
                report.read(pending)
                pending = None
            if report.is_due(step) or last:
                bar.show(loss=report.tell(step, state, loader.skipped))
            if step % task.checkpoint.every == 0 or last:
                checkpoints.save(step, state, loader.state())
            bar.advance(step)
            if stop:
                break

    if int(state.step) < train.steps:
        log.info("stopped by %s after step %d; the same command goes on from there", stop.name, int(state.step))
    elif jax.process_index() == 0:
        path = directory / "model.safetensors"
        write_tree(path, jax.device_get(local(state.ema)), {"step": str(train.steps)})
        log.info("finished %d steps; the averaged weights are in %s", train.steps, path)
    return state
