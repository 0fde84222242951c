"""The training loop: batches in, updates, and everything that people look at meanwhile.

It knows a task only by the functions of `Task`, and moves its state as a pytree, whole or divided. It never waits for a
step that has just been sent off: metrics are read one step late.
"""

import contextlib
import logging
from pathlib import Path

import jax
from rich.console import Console

from genjax.data.loader import Loader
from genjax.errors import InputError, placed
from genjax.parallel.host import Agreement, ending_all, on_the_first, together, whole
from genjax.parallel.host_memory import keep_freed_memory
from genjax.parallel.mesh import batch_shards, batch_share, shard_batch
from genjax.runs.checkpoints import Checkpoints, fingerprint
from genjax.runs.directory import open_run, steps_saved
from genjax.runs.weights import weights_metadata, write_part
from genjax.training.beginnings import StartingPoints, first_state, restored_state, same_course, starting_points
from genjax.training.positions import own_position, positions_of_all, skipped_by_all
from genjax.training.progress import progress_bar
from genjax.training.report import Report
from genjax.training.signals import stop_on_signals
from genjax.training.state import TrainState, to_trees
from genjax.training.task import Task
from genjax.training.update import make_update
from genjax.training.writers import log_to

__all__ = ["fit"]

log = logging.getLogger(__name__)


def fit(task: Task, directory: Path, *, console: Console | None = None) -> TrainState:
    """Train `task` in a run directory until its last step, from where the directory's newest checkpoint left it.

    Returns the last state. A signal to stop saves and returns early. Raises InputError for what cannot be trained, and
    FloatingPointError when too many steps in a row were not finite. Of several processes, one that fails while they
    train ends all of them (`ending_all`).
    """
    task.mesh.start()
    keep_freed_memory()
    train = task.train
    with contextlib.ExitStack() as until_the_end:
        mesh, share, begins, loader = together(lambda: _looked_at(task, directory))
        until_the_end.callback(loader.close)
        console = console or Console()

        def open_directory():
            open_run(directory, task, goes_on=same_course)
            log_to(directory, console)

        on_the_first(open_directory)

        # -------------------------------------------------------------- the state: fresh, or where a checkpoint left it
        checkpoints = Checkpoints(directory / "checkpoints", task.checkpoint)
        until_the_end.callback(checkpoints.close)
        until_the_end.enter_context(ending_all())  # Before checkpoints are closed, where processes wait for each other.
        state, record = restored_state(task, mesh, directory, checkpoints) or (
            first_state(task, mesh, directory, begins),
            {},
        )
        start = int(state.step)
        if record:
            checkpoints.set_aside_after(start)
            loader.restore(own_position(record["data"], share))
            log.info("resuming %s at step %d of %d", directory, start, train.steps)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.parts.trained))
        kind = jax.devices()[0].device_kind
        log.info("%s: %s parameters, %d x %s, batch %d", directory, f"{count:,}", mesh.size, kind, train.batch_size)

        # -------------------------------------------------------------- steps
        held = fingerprint(state.parts.fixed) if jax.tree.leaves(state.parts.fixed) else None
        update = make_update(task, mesh, shardings=jax.tree.map(lambda leaf: leaf.sharding, state))
        report = Report(task, directory, start, untold=record.get("untold"))
        until_the_end.callback(report.close)
        stop, agreed = until_the_end.enter_context(stop_on_signals()), Agreement()
        bar = until_the_end.enter_context(progress_bar(console, train.steps, start))
        pending = None
        for step in range(start + 1, train.steps + 1):
            state, told = update(state, shard_batch(next(loader), mesh))
            if pending is not None:
                report.read(pending)  # The device is at work on this step while the last one's metrics are read.
            pending = told
            stopping = agreed(bool(stop))
            saving = step % task.checkpoint.every == 0 or step == train.steps or stopping
            if report.is_due(step) or saving:
                report.read(pending)
                pending = None
                positions = positions_of_all(loader.state())
            if report.is_due(step):
                bar.show(report.tell(step, state, skipped_by_all(positions)))
            if saving:
                record = {"data": positions, "untold": report.untold, "fixed": held}
                checkpoints.save(step, to_trees(state), record)
            bar.advance(step)
            if stopping:
                break
        checkpoints.wait()
        finished = int(state.step) == train.steps
        if finished:
            averaged = whole(state.averaged)
            metadata = weights_metadata(int(state.step), state.parts.fixed)

    if not finished:
        who = stop.name or "another process"
        log.info("stopped by %s after step %d; the same command goes on from there", who, int(state.step))
    else:

        def write():
            path = write_part(directory, "trained", averaged.trained, metadata)
            write_part(directory, "variables", averaged.variables)
            log.info("finished %d steps; the weights that samples are drawn with are in %s", train.steps, path)

        on_the_first(write)
    return state


def _looked_at(task: Task, directory: Path) -> tuple[jax.sharding.Mesh, tuple[int, int], StartingPoints, Loader]:
    """All that a process can refuse by itself, before anything is written."""
    train = task.train
    with placed("data", type(task.data)):
        source = task.data.source("train")
    task.check()
    with placed("mesh", type(task.mesh)):
        mesh = task.mesh.build()
        share = batch_share(mesh)
    _check_division(task, mesh)
    if (saved := steps_saved(directory)) and saved[-1] > train.steps:
        raise InputError(f"{directory} has been trained for {saved[-1]} steps, more than train.steps = {train.steps}")
    begins = starting_points(task, directory)
    loader = Loader(
        source,
        batch_size=train.batch_size,
        seed=train.seed,
        transform=task.prepare,
        process_index=share[0],
        process_count=share[1],
        threads=train.data_threads,
    )
    return mesh, share, begins, loader


def _check_division(task: Task, mesh: jax.sharding.Mesh) -> None:
    train, shares = task.train, batch_shards(mesh)
    if train.batch_size % (shares * train.accumulate):
        raise InputError(
            f"train.batch_size is {train.batch_size}, and does not split evenly over {shares} devices times"
            f" {train.accumulate} micro-batches"
        )
    if task.couples_rows and train.accumulate > 1:
        raise InputError(
            f"train.accumulate is {train.accumulate}, and the loss of this system couples the rows of a batch, which"
            " micro-batches would part: only 1 is accepted"
        )
    if task.mesh.all_reduce == "ring" and task.couples_rows:
        raise InputError("mesh.all_reduce is ring, which sums gradients of rows: a loss that couples rows takes psum")
