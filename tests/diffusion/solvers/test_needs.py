"""Laws of needs: where there is data in the noise, and where a velocity is finite."""

import jax.numpy as jnp

from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.processes import EDM, VE, VP, SubVP, Trigonometric
from genjax.diffusion.solvers.needs import SIGNAL_AT_START, VELOCITY_AT_END, has_noise, has_signal, has_velocity

START, END = jnp.float32(1), jnp.float32(0)


def test_a_path_that_ends_in_pure_noise_has_no_signal_there():
    assert not has_signal(RectifiedFlow(), START) and not has_signal(Trigonometric(), START)
    assert all(has_signal(process, START) for process in (VP(), VE(), EDM(), SubVP()))
    assert has_signal(RectifiedFlow(), jnp.float32(0.999))


def test_a_signal_is_one_from_a_millionth_of_the_noise_on_and_noise_from_a_millionth_of_the_data():
    for part, ends in ((has_signal, (1 - 2e-6, 1 - 4e-7)), (has_noise, (2e-6, 5e-7))):
        assert part(RectifiedFlow(), jnp.float32(ends[0])) and not part(RectifiedFlow(), jnp.float32(ends[1]))
    assert has_noise(VE(), END) and not has_noise(EDM(), END)


def test_noise_that_leaves_zero_as_the_square_root_of_time_has_no_velocity_there():
    assert not has_velocity(VP(), END)
    assert has_velocity(VP(), jnp.float32(1e-3))
    assert all(has_velocity(process, END) for process in (RectifiedFlow(), SubVP(), VE(), EDM()))


def test_a_need_is_asked_at_its_end_of_the_path():
    assert SIGNAL_AT_START.met(RectifiedFlow(), END, START) and not SIGNAL_AT_START.met(RectifiedFlow(), START, END)
    assert VELOCITY_AT_END.met(VP(), END, START) and not VELOCITY_AT_END.met(VP(), START, END)
