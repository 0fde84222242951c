"""Laws of the explicit sums over devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from genjax.parallel.collectives import all_reduce, ring_all_reduce
from genjax.parallel.mesh import DATA_AXIS, Mesh


def over_devices(devices, function, *arguments):
    """function on every device, of its own rows of the arguments; the results of all devices, stacked."""
    split = PartitionSpec(DATA_AXIS)

    def on_one(*rows):
        return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda row: row[0], rows)))

    mapped = jax.shard_map(on_one, mesh=Mesh(data=devices).build(), in_specs=split, out_specs=split, check_vma=False)
    return jax.jit(mapped)(*arguments)


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 7, 12])
def test_the_ring_gives_every_device_the_sum(devices, length):
    vectors = np.random.default_rng(length).integers(-1000, 1000, (devices, length)).astype(np.float32)
    sums = over_devices(devices, lambda v: ring_all_reduce(v, DATA_AXIS), vectors)
    np.testing.assert_array_equal(sums, np.broadcast_to(vectors.sum(0), (devices, length)))


def test_all_devices_end_the_ring_with_the_same_bits():
    vectors = np.random.default_rng(0).normal(size=(4, 11)).astype(np.float32)
    sums = np.asarray(over_devices(4, lambda v: ring_all_reduce(v, DATA_AXIS), vectors))
    assert (sums == sums[0]).all()


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_ring_and_psum_agree_on_a_tree(devices):
    rng = np.random.default_rng(1)
    tree = {
        "w": rng.normal(size=(devices, 3, 5)).astype(np.float32),
        "b": rng.normal(size=(devices,)).astype(np.float32),
    }
    ring, psum = (
        over_devices(devices, lambda t, a=algorithm: all_reduce(t, DATA_AXIS, a), tree)
        for algorithm in ("ring", "psum")
    )
    chex.assert_trees_all_close(ring, psum, rtol=1e-6, atol=1e-6)
    assert ring["w"].dtype == jnp.float32


@pytest.mark.parametrize("algorithm", ["ring", "psum"])
def test_plain_numbers_are_summed_too(algorithm):
    """Such as the weight of a metric that every device knows."""

    def summed(x):
        return jax.tree.map(jnp.asarray, all_reduce({"sum": x.sum(), "weight": 1.0, "rows": 2}, DATA_AXIS, algorithm))

    sums = over_devices(4, summed, np.ones((4, 2), np.float32))
    assert {name: set(each.tolist()) for name, each in sums.items()} == {"sum": {8.0}, "weight": {4.0}, "rows": {8}}


def test_the_ring_counts_exactly():
    """Beside floats, beyond 2^24, where float32 knows every other integer only."""
    counts = np.array([2**24 + 1, 2, 4, 6], np.int32)
    tree = {"count": counts, "w": np.ones((4, 3), np.float32)}
    sums = over_devices(4, lambda t: all_reduce(t, DATA_AXIS, "ring"), tree)
    assert (sums["count"].dtype, sums["w"].dtype) == (jnp.int32, jnp.float32)
    np.testing.assert_array_equal(sums["count"], np.full(4, 2**24 + 13))
    np.testing.assert_array_equal(sums["w"], np.full((4, 3), 4.0))


def test_the_ring_uses_only_messages_between_neighbours():
    mapped = jax.shard_map(
        lambda v: ring_all_reduce(v[0], DATA_AXIS)[None],
        mesh=Mesh(data=4).build(),
        in_specs=PartitionSpec(DATA_AXIS),
        out_specs=PartitionSpec(DATA_AXIS),
        check_vma=False,
    )
    program = str(jax.make_jaxpr(mapped)(np.zeros((4, 8), np.float32)))
    assert "ppermute" in program
    assert "psum" not in program
