"""Laws of reading into a cache block by block; that it equals the scan is in the tests of each network."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from genjax.models.reading import apart, read_blocks, reader
from genjax.nn.kv_cache import empty_cache


class Shift(nn.Module):
    """Adds its parameter and what it is told."""

    @nn.compact
    def __call__(self, carry, more):
        x, cache = carry
        return (x * self.param("factor", nn.initializers.ones, ()) + more, cache), None


class Model(nn.Module):
    """A name to be told apart by."""

    width: int = 1


STACK = {"factor": np.array([2.0, 3.0, 5.0], np.float32)}


def test_blocks_are_taken_apart_in_their_order_and_only_once():
    pieces = apart(STACK)
    assert [float(piece["factor"]) for piece in pieces] == [2, 3, 5]
    assert apart(pieces) is pieces


def test_blocks_run_in_their_order_stacked_or_apart_and_the_cache_grows_by_the_tokens():
    x, cache = jnp.ones((2, 4, 1)), empty_cache(3, 2, 8, 1, 1)._replace(length=jnp.array([0, 3]))
    for blocks in (STACK, apart(STACK)):
        found, read = read_blocks(Shift(), blocks, x, cache, 1.0)
        np.testing.assert_array_equal(found, np.full((2, 4, 1), ((1 * 2 + 1) * 3 + 1) * 5 + 1))
        np.testing.assert_array_equal(read.length, [4, 7])
        assert len(read.layers) == 3


def test_readers_of_equal_networks_are_equal_functions_and_of_others_are_not():
    params = {"blocks": STACK, "other": np.ones(2)}
    first = reader(Model(), params)
    assert first.func == reader(Model(), params).func and hash(first.func) == hash(reader(Model(), params).func)
    assert first.func != reader(Model(width=2), params).func
    assert first.args[0].keys() == params.keys() and len(first.args[0]["blocks"]) == 3
