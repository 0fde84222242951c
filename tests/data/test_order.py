"""Laws of the order of examples: it is grain's, whatever the count, the epoch and the seed."""

import numpy as np
import pytest
from grain.experimental import index_shuffle
from hypothesis import given, settings
from hypothesis import strategies as st

from genjax.data.order import epoch_order, shuffled


@settings(max_examples=40)
@given(st.integers(1, 2**16) | st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_the_permutation_of_an_epoch_is_that_of_grains_shuffle(count, seed):
    order = epoch_order(count, seed)
    some = np.random.default_rng(seed).integers(count, size=30)
    theirs = [index_shuffle(int(i), max_index=count - 1, seed=seed, rounds=4) for i in some]
    np.testing.assert_array_equal(order[some], theirs)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_an_order_is_not_to_be_written_to_and_a_set_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(10, 0).sort()
    with pytest.raises(ValueError, match="for at most 65536 examples, not for 65537"):
        epoch_order(2**16 + 1, 0)


@pytest.mark.parametrize("count", [5, 2**16, 2**16 + 1, 10**6])
def test_an_epoch_has_the_seed_of_its_number_and_a_large_set_is_asked_of_grain(count):
    for epoch, place in ((0, 3), (2, 0), (7, 4)):
        theirs = index_shuffle(place, max_index=count - 1, seed=(2**32 - 5 + epoch) % 2**32, rounds=4)
        assert shuffled(epoch * count + place, count, 2**32 - 5) == theirs
