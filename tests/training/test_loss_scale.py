"""Laws of dynamic loss scaling."""

import jax
import jax.numpy as jnp
import pytest

from genjax.training.loss_scale import FIRST, LONGEST, PATIENCE, LossScale, first_scale, next_scale


def after(scale, overflows):
    return jax.lax.scan(lambda s, o: (next_scale(s, o), None), scale, jnp.asarray(overflows))[0]


def test_it_begins_at_two_to_the_sixteen():
    assert (float(first_scale().value), FIRST) == (65536.0, 2.0**16)


def test_clean_steps_double_it_and_an_overflow_starts_the_count_again():
    clean = [False] * PATIENCE
    assert float(after(first_scale(), clean).value) == 2 * FIRST
    assert float(after(first_scale(), clean[:-1]).value) == FIRST
    interrupted = after(first_scale(), [*clean[:-1], True, *clean[:-1]])
    assert (float(interrupted.value), int(interrupted.clean)) == (FIRST / 2, PATIENCE - 1)


@pytest.mark.parametrize(("value", "overflow", "bound"), [(1.0, True, 1.0), (LONGEST, False, LONGEST)])
def test_it_stays_within_its_bounds(value, overflow, bound):
    steps = [overflow] * PATIENCE
    assert float(after(LossScale(jnp.float32(value), jnp.int32(0)), steps).value) == bound
