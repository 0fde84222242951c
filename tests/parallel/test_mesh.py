"""Laws of the mesh and of how batches lie on it."""

import jax
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.parallel import mesh as module
from genjax.parallel.mesh import Mesh, batch_sharding, batch_shards, batch_share, replicated, shard_batch


def test_all_devices_by_default():
    assert dict(Mesh().build().shape) == {"data": len(jax.devices()), "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("mesh", "shape"),
    [
        (Mesh(fsdp=4), (1, 4, 1)),
        (Mesh(fsdp=2), (2, 2, 1)),
        (Mesh(tensor=2), (2, 1, 2)),
        (Mesh(fsdp=2, tensor=2), (1, 2, 2)),
        (Mesh(data=1, tensor=2), (1, 1, 2)),
    ],
)
def test_data_takes_the_devices_left_over_and_neighbours_share_a_layer(mesh, shape):
    built = mesh.build()
    assert built.axis_names == ("data", "fsdp", "tensor")
    assert built.devices.shape == shape
    assert [device.id for device in built.devices.ravel()] == list(range(built.size))
    assert mesh.sharded


def test_without_fsdp_and_tensor_every_device_holds_all():
    assert not Mesh().sharded and not Mesh(data=2).sharded


@pytest.mark.parametrize("devices", [0, -1, 1000])
def test_more_devices_than_there_are_is_refused(devices):
    with pytest.raises(InputError, match=rf"^data is {devices}, and this machine has \d+ devices"):
        Mesh(data=devices).build()


@pytest.mark.parametrize(
    ("mesh", "processes", "message"),
    [
        (Mesh(fsdp=3), 1, "^fsdp x tensor is 3 x 1, and this machine has 4 devices, which is no multiple of"),
        (Mesh(data=2, fsdp=4), 1, "^data x fsdp x tensor is 2 x 4 x 1, and this machine has 4 devices"),
        (Mesh(data=9), 2, "^data is 9, and all processes together have 4 devices"),
        (Mesh(fsdp=8), 2, "^fsdp x tensor is 8 x 1, and all processes together have 4 devices"),
        (Mesh(data=2), 2, "^data is 2, and all processes together have 4 devices, all of which must take part"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_is_refused(mesh, processes, message, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    with pytest.raises(InputError, match=message):
        mesh.build()


@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_axes_of_no_device_and_a_ring_of_parts_are_refused(axis):
    with pytest.raises(InputError, match=f"^{axis} is at least 1, not 0"):
        Mesh(**{axis: 0})
    with pytest.raises(InputError, match="^all_reduce is ring, which sums gradients of whole parameters"):
        Mesh(**{axis: 2}, all_reduce="ring")


@pytest.mark.parametrize(
    ("mesh", "places"),
    [(Mesh(fsdp=2), [0, 1, 2, 3]), (Mesh(tensor=2), [0, 0, 1, 1]), (Mesh(fsdp=2, tensor=2), [0, 0, 1, 1])],
)
def test_rows_are_split_over_data_and_fsdp_and_shared_over_tensor(mesh, places):
    built = mesh.build()
    rows = np.arange(8)
    sharded = shard_batch({"x": rows}, built)["x"]
    assert sharded.sharding == batch_sharding(built)
    size = 8 // batch_shards(built)
    parts = {shard.device.id: np.asarray(shard.data).tolist() for shard in sharded.addressable_shards}
    assert [parts[i] for i in range(4)] == [rows[p * size : (p + 1) * size].tolist() for p in places]


@pytest.mark.parametrize(
    ("mesh", "processes", "shares"),
    [
        (Mesh(), [[0, 1], [2, 3]], [(0, 2), (1, 2)]),
        (Mesh(fsdp=4), [[0], [1], [2], [3]], [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (Mesh(fsdp=2, tensor=2), [[0], [1], [2], [3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        (Mesh(tensor=4), [[0, 1], [2, 3]], [(0, 1), (0, 1)]),
        (
            Mesh(tensor=2),
            [[0], [1, 2], [3]],
            "^tensor is 2, and groups of so many devices do not fit into",
        ),
        (Mesh(), [[0, 1, 2, 3]], [(0, 1)]),
    ],
)
def test_processes_that_compute_the_same_samples_read_the_same_part(mesh, processes, shares, monkeypatch):
    monkeypatch.setattr(module, "_process_of", lambda device: [device.id in own for own in processes].index(True))
    for index in range(len(processes)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        if isinstance(shares, str):
            with pytest.raises(InputError, match=shares):
                batch_share(mesh.build())
        else:
            assert batch_share(mesh.build()) == shares[index]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_batch_is_split_in_order_and_whole(devices):
    batch = {"image": np.arange(8 * 3, dtype=np.float32).reshape(8, 3)}
    sharded = shard_batch(batch, Mesh(data=devices).build())["image"]
    np.testing.assert_array_equal(sharded, batch["image"])
    shards = [np.asarray(shard.data) for shard in sharded.addressable_shards]
    assert [len(shard) for shard in shards] == [8 // devices] * devices
    np.testing.assert_array_equal(np.concatenate(shards), batch["image"])


def test_replicated_means_whole_on_every_device():
    array = jax.device_put(np.arange(3), replicated(Mesh(data=2).build()))
    assert [np.asarray(shard.data).tolist() for shard in array.addressable_shards] == [[0, 1, 2]] * 2
