"""The mesh of devices, and how batches and states lie on it.

One axis, `data`: every device holds the whole state and a share of the batch. A checkpoint knows nothing of it, so a
run may continue on another number of devices.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from genjax.errors import InputError

DATA_AXIS = "data"
BATCH_AXES = ("data",)


@dataclass(frozen=True)
class Mesh:
    """Which devices train, and how they sum gradients."""

    data: int | None = None
    """Number of devices that share a batch; all of them when None."""
    all_reduce: Literal["psum", "ring"] = "psum"
    """How gradients are summed: XLA's all-reduce, or an explicit ring of reduce-scatter and all-gather."""
    multihost: bool = False
    """Start jax.distributed first: one process on each host, found through the cluster's environment."""

    def start(self) -> None:
        """Join the cluster, if there is one. Call it before anything else touches a device."""
        if self.multihost and not jax.distributed.is_initialized():
            jax.distributed.initialize()

    def build(self) -> jax.sharding.Mesh:
        """The mesh over the first `data` devices. Raises InputError when there are fewer."""
        devices = jax.devices()
        count = len(devices) if self.data is None else self.data
        if not 1 <= count <= len(devices):
            raise InputError(f"mesh.data is {count}, and this machine has {len(devices)} devices")
        return jax.sharding.Mesh(np.asarray(devices[:count]), (DATA_AXIS,))


def wait_for_all(what: str) -> None:
    """Until every process has come to this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> PyTree[Any]:
    """Global arrays, split over the data axis, from this process' rows of the batch."""
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def is_divided(mesh: jax.sharding.Mesh) -> bool:
    return False


def batch_shares(mesh: jax.sharding.Mesh) -> int:
    return mesh.size
