"""The processes that every law here holds for, and double precision for the laws that need it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.process import RectifiedFlow


@dataclass(frozen=True)
class Cosine:
    """The variance-preserving quarter circle alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    def alpha(self, t):
        return jnp.cos(jnp.pi * t / 2)

    def sigma(self, t):
        return jnp.sin(jnp.pi * t / 2)


@dataclass(frozen=True)
class Curved:
    """A path with neither straight lines nor unit variance: alpha = 1 - t^2, sigma = 2 t."""

    def alpha(self, t):
        return 1 - t**2

    def sigma(self, t):
        return 2 * t


@pytest.fixture
def cosine():
    return Cosine()


@pytest.fixture(params=[RectifiedFlow(), Cosine(), Curved()], ids=lambda process: type(process).__name__)
def process(request):
    return request.param


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def x_0_and_eps():
    """Two arrays (7, 2, 3); one shape for all laws, so that operations are compiled once."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 2, 3)), jnp.float32)
