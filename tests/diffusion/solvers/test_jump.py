"""Laws of steps along mean velocities."""

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.mean_velocity import MeanVelocity
from genjax.diffusion.predictions import Velocity
from genjax.diffusion.process import RectifiedFlow, like
from genjax.diffusion.processes import Trigonometric
from genjax.diffusion.solvers import Euler, Jump, check_jump, integrate
from genjax.diffusion.targets import Gaussian
from genjax.errors import InputError

TARGET = Gaussian((0.2, -0.4), (0.5, 0.8))


@pytest.mark.parametrize("process", [RectifiedFlow(), Trigonometric()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("times", [[1.0, 0.0], [1.0, 0.7, 0.1, 0.0]], ids=len)
def test_one_step_along_the_mean_velocity_is_the_whole_flow_however_long(process, times, x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))

    def denoiser(x, t, end):
        mean = (x - TARGET.carried(process, x, t, end)) / like(t - end, x)
        return MeanVelocity().denoised(process, mean, x, t)

    drawn = integrate(Jump(), process, denoiser, x, np.array(times))
    exact = TARGET.carried(process, x, jnp.ones(5), jnp.zeros(5))
    np.testing.assert_allclose(drawn, exact, rtol=1e-9, atol=1e-9)


def test_where_the_denoiser_ignores_the_end_it_is_euler(x64):
    x, times = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2))), np.linspace(1, 0, 4)

    def denoiser(x, t, *end):
        return TARGET.denoised(RectifiedFlow(), x, t)

    jumped, stepped = (integrate(solver, RectifiedFlow(), denoiser, x, times) for solver in (Jump(), Euler()))
    np.testing.assert_allclose(jumped, stepped, rtol=1e-12)


def test_a_network_of_another_prediction_and_the_way_back_are_refused():
    falling = np.linspace(1, 0, 3)
    check_jump(Jump(), MeanVelocity(), falling)
    check_jump(Euler(), Velocity(), falling)
    with pytest.raises(InputError, match="this one predicts Velocity: choose Euler or another solver of its velocity"):
        check_jump(Jump(), Velocity(), falling)
    with pytest.raises(InputError, match="Jump steps from noise to data"):
        check_jump(Jump(), MeanVelocity(), falling[::-1])
