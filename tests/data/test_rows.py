"""Laws of rows: however they are cut into blocks, each comes out once and in its place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genjax.data.rows import filled, in_blocks, stacked


def test_rows_are_stacked_field_by_field():
    batch = stacked({"x": np.full(2, i), "label": i} for i in range(3))
    np.testing.assert_array_equal(batch["x"], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(batch["label"], [0, 1, 2])


def test_the_last_row_fills_up():
    np.testing.assert_array_equal(filled(np.array([[1, 2], [3, 4]]), 4), [[1, 2], [3, 4], [3, 4], [3, 4]])
    full = np.arange(3)
    np.testing.assert_array_equal(filled(full, 3), full)
    assert filled(full, 3) is not full  # what is written into it does not reach the rows


@given(st.integers(1, 20), st.integers(1, 25))
def test_blocks_change_nothing_but_the_shapes_that_a_function_sees(count, size):
    a, b, shapes = np.arange(2 * count).reshape(count, 2), np.arange(count), set()

    def function(a, b, none):
        shapes.add((a.shape, b.shape, none))
        return a + b[:, None]

    np.testing.assert_array_equal(in_blocks(function, a, b, None, size=size), a + b[:, None], strict=True)
    assert shapes == {((size, 2), (size,), None)}


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_rows_may_lie_along_another_axis_of_what_comes_out(size):
    a = np.arange(10).reshape(5, 2)
    whole = in_blocks(lambda rows: np.stack([rows, -rows]), a, size=size, axis=1)
    np.testing.assert_array_equal(whole, np.stack([a, -a]), strict=True)
