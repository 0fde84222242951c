"""What the laws of solvers share."""

from pathlib import Path

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden():
    """Trajectories of diffusers' samplers; see tests/golden/make_solvers.py."""
    with np.load(Path(__file__).parents[2] / "golden" / "solvers.npz") as file:
        return dict(file)


@pytest.fixture
def stepwise():
    """A few steps of many solvers: operation by operation all of them share what is compiled, one after another."""
    with jax.disable_jit():
        yield
