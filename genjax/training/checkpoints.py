"""Checkpoints: the whole train state and the position in the data, by Orbax; asynchronous, atomic, the newest N kept.

A checkpoint holds no device layout: it is restored onto whatever mesh the run has now. It holds a fingerprint of the
state, as storage does not notice every flipped bit. A newest checkpoint that cannot be read, or that has another
fingerprint, is reported, and the one before it is used.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from genjax.errors import InputError

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
        if self.every < 1 or self.keep < 1:
            raise InputError(f"checkpoint.every and checkpoint.keep are at least 1, not {self.every} and {self.keep}")


class Checkpoints:
    """The checkpoints of one run directory; without a config they are only read, while the run may go on."""

    def __init__(self, directory: Path, config: Checkpoint | None = None):
        if config is None:
            options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                enable_async_checkpointing=config.asynchronous,
                cleanup_tmp_directories=True,  # What a killed run left half-written.
            )
        self._directory = Path(directory).resolve()
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state: PyTree[jax.Array], position: dict[str, Any]) -> None:
        """Save after `step` steps. The state may be donated to the next step as soon as this returns."""
        if step in self._manager.all_steps():
            return
        record = {"data": position, "fingerprint": fingerprint(state)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        self._manager.save(step, args=items)

    def restore(self, template: PyTree[jax.ShapeDtypeStruct]) -> tuple[int, PyTree[jax.Array], dict[str, Any]] | None:
        """The newest readable (step, state, position of the data), or None when there are no checkpoints.

        `template` gives shapes, types and shardings. Raises InputError when there are checkpoints and none can be read.
        """
        items = ocp.args.Composite(state=ocp.args.StandardRestore(template), record=ocp.args.JsonRestore())
        reasons = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(step, args=items)
                if fingerprint(restored.state) != restored.record["fingerprint"]:
                    raise ValueError("its numbers are not those that were saved")
            except Exception as error:  # Orbax raises whatever its storage does; any of it means unreadable.
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                log.warning("checkpoint %d in %s cannot be read and is passed over: %s", step, self._directory, reason)
                reasons.append(f"{step} ({reason})")
            else:
                return step, restored.state, restored.record["data"]
        if reasons:
            raise InputError(f"none of the checkpoints in {self._directory} can be read: {'; '.join(reasons)}")
        return None

    def set_aside_after(self, step: int) -> None:
        """Move the checkpoints newer than `step`, which could not be read, out of the way, as `unreadable-STEP`."""
        for newer in [s for s in self._manager.all_steps() if s > step]:
            (self._directory / str(newer)).rename(self._directory.parent / f"unreadable-{newer}")
        self._manager.reload()

    def wait(self) -> None:
        """Until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def fingerprint(tree: PyTree[jax.Array]) -> int:
    """A 32-bit sum over all bits of a tree, weighted by place; the same on any number of devices, as it is exact."""
    return int(_fingerprint(tree))


@jax.jit
def _fingerprint(tree):
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = jax.lax.bitcast_convert_type(leaf, _UNSIGNED[leaf.dtype.itemsize]).ravel().astype(jnp.uint32)
        odd = 2 * (jnp.arange(words.size, dtype=jnp.uint32) + number) + 1
        # An odd factor makes every single flipped bit count; the multiplier (Knuth's) keeps neighbours apart.
        total = total * jnp.uint32(2654435761) + jnp.sum(words * (odd * jnp.uint32(2654435761)), dtype=jnp.uint32)
    return total


_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
