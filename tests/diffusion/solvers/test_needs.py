"""Laws of needs: where there is data in the noise, and where a velocity is finite."""

import jax.numpy as jnp

from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.processes import EDM, VE, VP, SubVP, Trigonometric
from genjax.diffusion.solvers.needs import SIGNAL_AT_START, VELOCITY_AT_END, has_signal, has_velocity

START, END = jnp.float32(1), jnp.float32(0)


def test_a_path_that_ends_in_pure_noise_has_no_signal_there():
    assert not has_signal(RectifiedFlow(), START) and not has_signal(Trigonometric(), START)
    assert all(has_signal(process, START) for process in (VP(), VE(), EDM(), SubVP()))
    assert has_signal(RectifiedFlow(), jnp.float32(0.999))


def test_noise_that_leaves_zero_as_the_square_root_of_time_has_no_velocity_there():
    assert not has_velocity(VP(), END)
    assert has_velocity(VP(), jnp.float32(1e-3))
    assert all(has_velocity(process, END) for process in (RectifiedFlow(), SubVP(), VE(), EDM()))


def test_a_need_is_asked_at_its_end_of_the_path():
    assert SIGNAL_AT_START.met(RectifiedFlow(), END, START) and not SIGNAL_AT_START.met(RectifiedFlow(), START, END)
    assert VELOCITY_AT_END.met(VP(), END, START) and not VELOCITY_AT_END.met(VP(), START, END)
