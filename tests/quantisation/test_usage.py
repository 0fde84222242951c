"""Laws of usage: analytic figures, and counts of parts of a set that add up to those of the whole."""

import numpy as np
import pytest

from genjax.errors import InputError
from genjax.quantisation.usage import count, usage


def test_codes_used_alike_have_the_entropy_of_their_number():
    said = usage(count(np.tile(np.arange(32), 5), 32))
    np.testing.assert_allclose(said, (1, 32, 5), rtol=1e-12)


def test_one_code_alone_says_nothing():
    np.testing.assert_allclose(usage(count(np.full(9, 3), 16)), (1 / 16, 1, 0), atol=1e-12)


def test_entropy_is_that_of_the_shares():
    np.testing.assert_allclose(usage(np.array([4, 2, 1, 1, 0, 0])), (4 / 6, 2**1.75, 1.75), rtol=1e-12)


def test_counts_of_parts_add_up_and_figures_of_parts_do_not():
    ids = np.random.default_rng(0).integers(50, size=(40, 2))
    parts = [count(part, 50) for part in np.split(ids, 4)]
    np.testing.assert_array_equal(sum(parts), count(ids, 50))
    assert max(usage(part).perplexity for part in parts) < usage(sum(parts)).perplexity


def test_of_nothing_there_is_no_usage():
    with pytest.raises(InputError, match="none was counted"):
        usage(np.zeros(4, int))


@pytest.mark.parametrize("ids", [[0, 4], [-1]])
def test_ids_outside_the_codebook_are_refused(ids):
    with pytest.raises(InputError, match=r"ids lie in \[0, 4\)"):
        count(np.array(ids), 4)
