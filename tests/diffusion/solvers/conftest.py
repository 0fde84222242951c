"""What the laws of solvers share."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden():
    """Trajectories of diffusers' samplers; see tests/golden/make_solvers.py."""
    with np.load(Path(__file__).parents[2] / "golden" / "solvers.npz") as file:
        return dict(file)
