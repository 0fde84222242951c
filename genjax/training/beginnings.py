"""Where a run begins: with fresh parts, with what comes from elsewhere, or where a checkpoint of its own left it."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from genjax.parallel.host import whole
from genjax.parallel.rules import state_shardings, unbox
from genjax.runs.checkpoints import Checkpoints
from genjax.runs.directory import steps_saved
from genjax.runs.weights import read_fixed, write_part
from genjax.training.state import TrainState, abstract_state, from_trees, initial_state, to_trees
from genjax.training.task import Task

__all__ = ["StartingPoints", "first_state", "restored_state", "same_course", "starting_points"]

log = logging.getLogger(__name__)


class StartingPoints(NamedTuple):
    """What a new run takes from elsewhere."""

    trained: PyTree[Array] | None
    """Weights to begin with; None for fresh ones."""
    held: dict[str, PyTree[Array]]
    """Parts that hold still."""


def starting_points(task: Task, directory: Path) -> StartingPoints:
    """Read what a new run takes from elsewhere; a run that has a checkpoint has it already, and reads nothing.

    Raises InputError where it is not there, or does not fit.
    """
    if steps_saved(directory):
        return StartingPoints(None, {})
    parts, start = unbox(jax.eval_shape(task.init, jax.random.key(0))), task.train.start
    held = {
        name: source.read_as(parts.fixed[name]) if name in parts.fixed else source.read()
        for name, source in task.sources().items()
    }
    return StartingPoints(start.read_as(parts.trained) if start else None, held)


def first_state(task: Task, mesh: jax.sharding.Mesh, directory: Path, begins: StartingPoints) -> TrainState:
    """The state before the first step: fresh, but for what comes from elsewhere, which is copied into the directory."""
    held = begins.held
    template = abstract_state(task, mesh, held)
    key = jax.random.fold_in(jax.random.key(task.train.seed), 2**31 - 1)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    state = jax.jit(lambda key, held: initial_state(task, key, held), out_shardings=shardings)(key, held)
    if begins.trained is not None:
        trained = jax.device_put(begins.trained, shardings.parts.trained)
        ema = state.ema if state.ema is None else jax.tree.map(jnp.copy, trained)
        state = state._replace(parts=state.parts._replace(trained=trained), ema=ema)
        log.info("the weights begin as those of %s", task.train.start.path)
    fixed = whole(state.parts.fixed)
    if jax.process_index() == 0:
        write_part(directory, "fixed", fixed)
    return state


def restored_state(
    task: Task, mesh: jax.sharding.Mesh, directory: Path, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]] | None:
    """The state of the newest readable checkpoint and its record; None when there is no checkpoint.

    Raises InputError when no checkpoint can be read, or when the parts that hold still are not those of the run, or not
    what its sources take for theirs.
    """
    template = abstract_state(task, mesh)
    restored = checkpoints.restore(to_trees(template))
    if restored is None:
        return None
    recorded = restored.record["fixed"]
    held = {} if recorded is None else read_fixed(directory, recorded)
    for name, source in task.sources().items():
        source.check(held[name])
    fixed = jax.device_put(held, state_shardings(mesh, held))
    return from_trees(restored.trees, fixed, averaged=template.ema is not None), restored.record


def same_course(there: Task, here: Task) -> str | None:
    """None where a run of `there` may go on as `here`, which has other steps; otherwise what to do instead.

    It may where the learning rates of all players agree on every step that the shorter of the two takes.
    """
    steps = min(there.train.steps, here.train.steps)
    for old, new in zip(there.players().values(), here.players().values(), strict=True):
        updates = np.arange(old.moves(steps))
        rates = [p.optimizer.schedule(p.moves(task.train.steps))(updates) for p, task in ((old, there), (new, here))]
        if not np.array_equal(*rates):
            return (
                "its learning rate would have been another one from the start; give another --workdir, and begin with"
                " these weights by --train.start.path and this directory"
            )
    return None
