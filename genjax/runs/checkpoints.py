"""Checkpoints: named trees of arrays and a record of plain data, by Orbax; asynchronous, atomic, the newest N kept.

A checkpoint holds no device layout: it is restored onto whatever mesh the run has now, whole or in part (a sampler
reads the averaged weights alone). It holds a fingerprint of each tree, as storage does not notice every flipped bit. A
newest checkpoint that cannot be read, or that has another fingerprint, is reported, and the one before it is used. What
one of several processes cannot read none of them uses.
"""

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from genjax.errors import InputError
from genjax.parallel.host import first_says, on_the_first, together

__all__ = ["Checkpoint", "Checkpoints", "Restored", "fingerprint"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """When checkpoints are written and how many are kept."""

    every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Number of newest checkpoints that are kept."""
    asynchronous: bool = True
    """Write in the background while training goes on."""

    def __post_init__(self):
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, not {getattr(self, name)}")


class Restored(NamedTuple):
    """What `Checkpoints.restore` found."""

    step: int
    trees: dict[str, PyTree[jax.Array]]
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory, for all processes of the run together.

    Without a config they are only read, by a process alone, while the run may go on.
    """

    def __init__(self, directory: Path, config: Checkpoint | None = None):
        self._directory, self._manager = Path(directory).resolve(), None
        if config is not None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                enable_async_checkpointing=config.asynchronous,
                cleanup_tmp_directories=True,  # What a killed run left half-written.
            )
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, trees: Mapping[str, PyTree[jax.Array]], record: Mapping[str, Any]) -> None:
        """Save after `step` steps; empty trees are left out. The arrays may be donated as soon as this returns."""
        if step in self._manager.all_steps():
            return
        held = {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
        record = dict(record) | {"fingerprints": {name: fingerprint(tree) for name, tree in held.items()}}
        items = {name: ocp.args.StandardSave(tree) for name, tree in held.items()}
        self._manager.save(step, args=ocp.args.Composite(record=ocp.args.JsonSave(record), **items))

    def restore(self, templates: Mapping[str, PyTree[jax.ShapeDtypeStruct]]) -> Restored | None:
        """The trees named in `templates` of the newest readable checkpoint, or None when there are no checkpoints.

        Templates give shapes, types and shardings; a tree that is not asked for is not read, an empty one given back.
        Raises InputError when there are checkpoints and none can be read.
        """
        asked = {name: tree for name, tree in templates.items() if jax.tree.leaves(tree)}
        items = {name: ocp.args.StandardRestore(tree) for name, tree in asked.items()}
        # Each process reads by itself: Orbax would let those that can read wait for one that cannot.
        own = ocp.options.MultiprocessingOptions(jax.process_index(), {jax.process_index()})
        options = ocp.CheckpointManagerOptions(
            create=False, enable_async_checkpointing=False, multiprocessing_options=own
        )
        reasons = []
        with ocp.CheckpointManager(self._directory, options=options) as reader:

            def read():
                held = reader.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore(), **items))
                return {name: held[name] for name in asked}, held.record

            def compare():
                if found != {name: record["fingerprints"][name] for name in asked}:
                    raise ValueError("its numbers are not those that were saved")

            step = self._newest(reader)
            while step is not None:
                try:
                    trees, record = self._by_all(read)
                    found = {name: fingerprint(tree) for name, tree in trees.items()}
                    self._by_all(compare)
                except Exception as error:  # Orbax raises whatever its storage does; any of it means unreadable.
                    said = str(error).strip()
                    reason = said.splitlines()[0] if said else type(error).__name__
                    log.warning(
                        "checkpoint %d in %s cannot be read and is passed over: %s", step, self._directory, reason
                    )
                    reasons.append(f"{step} ({reason})")
                else:
                    return Restored(step, {**templates, **trees}, record)
                step = self._newest(reader, below=step)
        if reasons:
            raise InputError(f"none of the checkpoints in {self._directory} can be read: {'; '.join(reasons)}")
        return None

    def _by_all(self, action: Callable[[], Any]) -> Any:
        return action() if self._manager is None else together(action)

    def _newest(self, reader: ocp.CheckpointManager, below: int | None = None) -> int | None:
        """The newest step, or the newest below another; the first process says it, as it alone moves and deletes."""
        step = max((step for step in reader.all_steps() if below is None or step < below), default=-1)
        step = step if self._manager is None else first_says(step)
        return None if step < 0 else step

    def set_aside_after(self, step: int) -> None:
        """Move the checkpoints newer than `step`, which could not be read, out of the way, as `unreadable-STEP`.

        Or `unreadable-STEP-2`, and so on. Called by all processes; the first moves them.
        """

        def move():
            for newer in (s for s in self._manager.all_steps() if s > step):
                names = (f"unreadable-{newer}" + (f"-{n}" if n > 1 else "") for n in itertools.count(1))
                free = next(path for path in map(self._directory.parent.joinpath, names) if not path.exists())
                (self._directory / str(newer)).rename(free)

        on_the_first(move)
        self._manager.reload()

    def wait(self) -> None:
        """Until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()


def fingerprint(tree: PyTree[jax.Array]) -> int:
    """A 32-bit sum over all bits of a tree, weighted by place; the same on any number of devices, as it is exact."""
    return int(_fingerprint(tree))


@jax.jit
def _fingerprint(tree):
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = _words(leaf)
        place = _place(words.shape)  # By place and not by flattening, which would gather a sharded array.
        odd = 2 * (place + jnp.uint32(number)) + 1
        # An odd factor makes every single flipped bit count; the multiplier (Knuth's) keeps neighbours apart.
        total = total * jnp.uint32(2654435761) + jnp.sum(words * (odd * jnp.uint32(2654435761)), dtype=jnp.uint32)
    return total


def _words(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.bool_):
        return leaf.astype(jnp.uint32)
    # A wider type comes back as several words on one more axis.
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _place(shape):
    """The row-major index of every element."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return place
