"""Laws of pictures of points."""

import numpy as np

from genjax.tasks.plane import MARGIN, scatter


def middle_of_blue(picture):
    """(column, row) of the mean pixel that is more blue than red, in shares of the side."""
    rows, columns = np.nonzero(picture[..., 2] - picture[..., 0] > 0.1)
    return columns.mean() / picture.shape[1], rows.mean() / picture.shape[0]


def test_a_point_is_where_it_should_be_and_blue():
    picture = scatter(np.array([[0.5, 0.5]]), np.array([[-1.0, -1.0], [1.0, 1.0]]), side=100)
    assert picture.shape == (100, 100, 3)
    assert -1 <= picture.min() <= picture.max() <= 1
    # Right of the middle, above it.
    np.testing.assert_allclose(middle_of_blue(picture), (0.5 + 0.25 / MARGIN, 0.5 - 0.25 / MARGIN), atol=0.02)


def test_what_is_real_says_where_the_middle_is():
    """Data far from the origin fills the picture as well, and a sample beyond it moves nothing."""
    real = np.array([[9.0, 4.0], [11.0, 4.0]])
    for drawn in ([[10.5, 4.5]], [[10.5, 4.5], [50.0, 4.0]]):
        picture = scatter(np.array(drawn), real, side=100)
        np.testing.assert_allclose(middle_of_blue(picture), (0.5 + 0.25 / MARGIN, 0.5 - 0.25 / MARGIN), atol=0.02)


def test_equal_points_have_a_picture():
    np.testing.assert_allclose(middle_of_blue(scatter(np.full((3, 2), 7.0), side=100)), (0.5, 0.5), atol=0.02)
