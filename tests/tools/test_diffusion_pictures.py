"""Laws of the pictures of docs/diffusion.md."""

import numpy as np
import pytest

from tools import diffusion_pictures as pictures

MEANS = np.ravel(pictures.DATA.means)
DETERMINISTIC = [path for path in pictures.PATHS if not path[2].stochastic]


@pytest.mark.slow
@pytest.mark.parametrize("path", DETERMINISTIC, ids=lambda path: path[0])
def test_lines_of_an_ode_do_not_cross_and_end_at_the_data(path):
    _, process, solver = path
    states = pictures.travelled(process, solver, np.linspace(1, 1e-3, pictures.STEPS + 1))
    assert states.shape == (pictures.STEPS + 1, pictures.LINES)
    assert (np.diff(states, axis=1) > 0).all()
    nearest = np.abs(states[-1][:, None] - MEANS).min(axis=1)
    assert nearest.max() < 5 * pictures.DATA.stds[0]


def test_the_density_behind_the_lines_is_largest_at_the_data_in_each_column():
    x = np.linspace(-2, 2, 401)
    density = pictures.density_of(pictures.PATHS[2][1], np.linspace(1e-3, 1, pictures.STEPS + 1), x)
    assert density.max(axis=0) == pytest.approx(1)
    assert np.abs(x[density[:, 0].argmax()] - MEANS).min() < 0.02
