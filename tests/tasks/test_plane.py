"""Laws of pictures of points."""

import numpy as np

from genjax.tasks.plane import scatter


def test_a_point_is_where_it_should_be_and_blue():
    beneath = np.array([[-1.0, -1.0], [1.0, 1.0]])
    picture = scatter(np.array([[0.5, 0.5]]), beneath, side=100)
    assert picture.shape == (100, 100, 3)
    assert -1 <= picture.min() <= picture.max() <= 1
    rows, columns = np.nonzero(picture[..., 2] - picture[..., 0] > 0.1)
    # (0.5, 0.5) of a square that reaches to 1.1: right of the middle, above it.
    assert abs(columns.mean() - 100 * (0.5 + 0.5 / 2.2)) < 2
    assert abs(rows.mean() - 100 * (0.5 - 0.5 / 2.2)) < 2
