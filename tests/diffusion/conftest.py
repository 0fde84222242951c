"""The processes that every law here holds for, and double precision for the laws that need it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.processes import DDPM, EDM, VE, VP, CosineVP, SubVP, Trigonometric


@dataclass(frozen=True)
class Curved:
    """A path with neither straight lines nor unit variance: alpha = 1 - t^2, sigma = 2 t."""

    def alpha(self, t):
        return 1 - t**2

    def sigma(self, t):
        return 2 * t


SCHEDULES = [DDPM(), DDPM("cosine")]
KINDS = [RectifiedFlow(), VP(), CosineVP(), SubVP(), VE(), EDM(), Trigonometric(), *SCHEDULES]


def name(process):
    return process.schedule if isinstance(process, DDPM) else type(process).__name__


@pytest.fixture
def cosine():
    return Trigonometric()


@pytest.fixture(params=[RectifiedFlow(), Trigonometric(), Curved()], ids=name)
def process(request):
    """Paths whose every number is near 1."""
    return request.param


@pytest.fixture(params=[*KINDS[:-1], pytest.param(KINDS[-1], marks=pytest.mark.slow), Curved()], ids=name)
def any_process(request):
    """Every kind there is (of DDPM one schedule, the other where laws may take long), and one that there is not."""
    return request.param


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def x_0_and_eps():
    """Two arrays (7, 2, 3); one shape for all laws, so that operations are compiled once."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 2, 3)), jnp.float32)
