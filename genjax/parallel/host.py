"""What processes tell each other, and what they copy to their hosts.

Each process of a run on several hosts sees only its own devices. Files, pictures and exports need whole arrays
(`whole`); and a signal that reaches one process must stop all of them at the same step (`Agreement`), or the others
would wait for ever in the next sum over devices.

So would they for one that has failed. Where the devices are idle all hear of it, and all raise (`together`,
`on_the_first`). Between steps, where sums over devices are under way, the one that fails ends at once (`ending_all`),
and with it the run.

Why not `multihost_utils.reached_preemption_sync_point`: its service listens to SIGTERM with a handler of its own, so
that either it or Python's handler never hears of the signal; and it knows neither SIGINT nor another reason to stop.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from genjax.errors import InputError

__all__ = ["Agreement", "ending_all", "first_says", "on_the_first", "own_copy", "together", "whole"]

Result = TypeVar("Result")


def together(action: Callable[[], Result]) -> Result:
    """What `action` gives, done by every process; where it fails in one, all raise: the others InputError.

    Otherwise the others would wait for one that has gone, and that one at its exit for them. `action` sums nothing over
    devices.
    """
    failure = result = None
    try:
        result = action()
    except BaseException as error:  # Ctrl-C too, before signals are handled: who is interrupted is waited for as well.
        failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(failure is not None))
        if failed.any() and failure is None:
            failure = InputError(f"process {failed.argmax()} has failed, and shows why")
    if failure is not None:
        raise failure
    return result


def on_the_first(action: Callable[[], None]) -> None:
    """Let the first process do it, while the others wait; where it fails, all raise (see `together`)."""
    together(lambda: action() if jax.process_index() == 0 else None)


def first_says(number: int) -> int:
    """The number that the first process gives, on all of them."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.array(number)))


@contextlib.contextmanager
def ending_all() -> Iterator[None]:
    """Within, one process of several that fails tells why and ends at once, without its exit, where jax waits for all.

    The others then end too: at once where their next sum over devices notices, as on hosts; else jax ends them, when
    it has not heard of the first process for a moment or of another for a heartbeat's time (100 s). What they have
    trained since the last checkpoint is lost: a sum that one of them misses leaves no state to save.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        bad_input = isinstance(error, InputError)  # Told as the doors tell it.
        print(f"error: {error}" if bad_input else traceback.format_exc(), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if bad_input else 1)


def whole(tree: PyTree[Any]) -> PyTree[np.ndarray]:
    """The arrays of a tree as numpy arrays, on every process; all processes must call it, with the same tree.

    What lies on devices of several processes is gathered, one leaf after another, so that a device needs room for the
    largest leaf. Arrays of numpy are taken as they are.
    """
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def own_copy(tree: PyTree[jax.Array]) -> PyTree[jax.Array]:
    """The arrays of a tree for this process to compute with alone; all processes must call it, with the same tree.

    What every device holds whole is taken from this process' first one; what is divided over devices of this process
    stays divided, and programs run where it lies; what is divided over processes is gathered to each.
    """
    leaves = jax.tree.leaves(tree)
    if all(leaf.is_fully_replicated for leaf in leaves):
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
    if all(leaf.is_fully_addressable for leaf in leaves):
        return tree
    return jax.tree.map(jax.numpy.asarray, whole(tree))


class Agreement:
    """Whether any process has something to say: `stop = Agreement(); if stop(bool(signal)): break`, at every step.

    Every process calls it equally often; a call gives the same answer on all of them. A single process hears itself at
    once. Several send their flag off to each other's devices, behind the step that is under way, and hear what was sent
    `every` calls ago: so the host waits for no step that it has not been waiting for anyway when it reads metrics one
    step late.
    """

    def __init__(self, every: int = 1):
        """Flags are sent at every `every`-th call; in between the answer is no."""
        self._every, self._calls, self._raised = every, 0, False
        self._sent: jax.Array | None = None
        one_each = {device.process_index: device for device in reversed(jax.devices())}
        devices = [one_each[process] for process in sorted(one_each)]
        self._processes = len(devices)
        mesh = jax.sharding.Mesh(np.asarray(devices), ("process",))
        self._each = NamedSharding(mesh, PartitionSpec("process"))
        self._any = jax.jit(lambda flags: flags.any(), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, flag: bool) -> bool:
        """Whether any process had its flag up, at this call or, of several processes, when flags were last sent."""
        if self._processes == 1:
            return bool(flag)
        self._raised |= bool(flag)
        self._calls += 1
        if self._calls % self._every:
            return False
        sent, flags = self._sent, np.array([self._raised])
        self._sent = self._any(jax.make_array_from_process_local_data(self._each, flags))
        return sent is not None and bool(sent)
