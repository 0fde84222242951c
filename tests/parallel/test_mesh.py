"""Laws of the mesh and of how batches lie on it."""

import jax
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.parallel.mesh import Mesh, replicated, shard_batch


def test_all_devices_by_default():
    assert Mesh().build().size == len(jax.devices())


@pytest.mark.parametrize("devices", [0, -1, 1000])
def test_more_devices_than_there_are_is_refused(devices):
    with pytest.raises(InputError, match=rf"mesh.data is {devices}, and this machine has \d+ devices"):
        Mesh(data=devices).build()


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
