"""The mesh of devices, and how batches lie on it.

Three axes. Over `data` and `fsdp` the batch is divided; over `fsdp` and `tensor` the parameters are, with their moments
and averages (rules.py says how). So `data` devices hold the same state and different samples, `fsdp` devices different
parts of the state and different samples (Zhao et al. 2023, arXiv:2304.11277: each layer is gathered when it is needed,
and its gradient scattered), `tensor` devices different parts of the state, and of the widths and heads inside a layer,
of the same samples (Shoeybi et al. 2019, arXiv:1909.08053). The devices of a `tensor` group are neighbours.

With fsdp = tensor = 1 every device holds the whole state: pure data parallelism, an explicit `shard_map`. A checkpoint
knows nothing of the mesh, so a run may continue on another one.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from genjax.errors import InputError

__all__ = [
    "BATCH_AXES",
    "FSDP_AXIS",
    "TENSOR_AXIS",
    "Mesh",
    "batch_sharding",
    "batch_shards",
    "batch_share",
    "replicated",
    "shard_batch",
]

AXES = DATA_AXIS, FSDP_AXIS, TENSOR_AXIS = ("data", "fsdp", "tensor")
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)
"""The axes over which the rows of a batch are divided."""


@dataclass(frozen=True)
class Mesh:
    """Which devices train, what each of them holds, and how they sum gradients."""

    data: int | None = None
    """Groups of devices that hold the same parameters and share a batch; None: as many as there are devices for."""
    fsdp: int = 1
    """Devices that share the parameters and the batch: each holds a part of both."""
    tensor: int = 1
    """Devices that share the parameters and compute each layer together: the widths and heads inside it are divided."""
    all_reduce: Literal["psum", "ring"] = "psum"
    """How gradients are summed: XLA's all-reduce, or an explicit ring of reduce-scatter and all-gather."""
    multihost: bool = False
    """Start jax.distributed first: one process on each host, found through the cluster's environment."""

    def __post_init__(self):
        for name in (FSDP_AXIS, TENSOR_AXIS):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.sharded and self.all_reduce == "ring":
            raise InputError(
                "all_reduce is ring, which sums gradients of whole parameters: with fsdp or tensor above 1 take psum"
            )

    @property
    def sharded(self) -> bool:
        """Whether parameters are divided over devices, so that no device holds the whole state."""
        return self.fsdp * self.tensor > 1

    def start(self) -> None:
        """Join the cluster, if there is one. Call it before anything else touches a device."""
        if self.multihost and not jax.distributed.is_initialized():
            jax.distributed.initialize()

    def build(self) -> jax.sharding.Mesh:
        """The mesh over the first devices that it needs, with axes (data, fsdp, tensor), all of type Auto.

        Raises InputError where the devices are fewer, where `data` is None and they are no multiple of the other axes,
        and where a process would have none.
        """
        devices, group = jax.devices(), self.fsdp * self.tensor
        several = jax.process_count() > 1
        there = f"{'all processes together have' if several else 'this machine has'} {len(devices)} devices"
        if self.data is None and len(devices) % group:
            raise InputError(
                f"fsdp x tensor is {self.fsdp} x {self.tensor}, and {there}, which is no multiple of it: say with data"
                " how many of them share a batch"
            )
        data = len(devices) // group if self.data is None else self.data
        asked = f"data is {data}"
        if self.sharded:
            asked = f"data x fsdp x tensor is {data} x {self.fsdp} x {self.tensor}"
        if not 1 <= data * group <= len(devices):
            raise InputError(f"{asked}, and {there}")
        if several and data * group < len(devices):
            raise InputError(f"{asked}, and {there}, all of which must take part")
        return jax.sharding.Mesh(np.asarray(devices[: data * group]).reshape(data, self.fsdp, self.tensor), AXES)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The rows of a batch, divided over the axes data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Into how many parts the rows of a batch are divided: its size must be a multiple of this."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_share(mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """(index, count): this process reads part `index` of `count` equal parts of every batch.

    Processes whose devices compute the same samples together, on the axis tensor, read the same part. Raises InputError
    where the parts of the processes are not equal or overlap in part, which happens when groups of `tensor` devices lie
    across processes of several devices.
    """
    shards = batch_shards(mesh)
    parts: dict[int, set[int]] = {}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((shards,)).items():
        parts.setdefault(_process_of(device), set()).add(rows.indices(shards)[0])
    size = max(map(len, parts.values()))
    if any(own != set(range(min(own) // size * size, min(own) // size * size + size)) for own in parts.values()):
        raise InputError(
            f"tensor is {mesh.shape[TENSOR_AXIS]}, and groups of so many devices do not fit into the processes"
        )
    return min(parts[jax.process_index()]) // size, shards // size


def _process_of(device: jax.Device) -> int:
    return device.process_index


def shard_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> PyTree[Any]:
    """Global arrays, divided over the axes data and fsdp, from this process' rows of the batch (see `batch_share`)."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
