"""Laws of how samples are led; that a sample is a function of seed, place and wish is with the system."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from genjax.diffusion.mean_velocity import MeanVelocity
from genjax.diffusion.processes import VP
from genjax.diffusion.solvers import Jump
from genjax.errors import InputError
from genjax.tasks import sampling
from genjax.tasks.sampling import Sampler, Worse, check_worse
from genjax.tasks.spaces import Latents

WORDS = ["a handwritten seven", "a handwritten one", "a handwritten two"]


@pytest.fixture(scope="module")
def unclipped(task):
    """One step, so that a sample is affine in what the network says."""
    return replace(task, space=Latents(), sampler=replace(task.sampler, steps=1))


@pytest.fixture(scope="module")
def drawn(unclipped, params):
    def draw(sampler=unclipped.sampler, **leads):
        return unclipped.sample(params, WORDS, seed=0, sampler=sampler, **leads)

    return draw


@pytest.fixture(scope="module")
def worse(unclipped, params):
    return Worse(unclipped, jax.tree.map(lambda leaf: 0.7 * leaf, params), 3.0)


def test_guidance_outside_its_interval_is_none_and_inside_it_all(unclipped, drawn):
    plain = drawn(replace(unclipped.sampler, guidance=1.0))
    outside, inside = (drawn(replace(unclipped.sampler, interval=ends)) for ends in ((0.0, 0.9), (0.5, 1.0)))
    np.testing.assert_allclose(outside, plain, atol=1e-5)
    np.testing.assert_allclose(inside, drawn(), atol=1e-5)
    assert np.abs(plain - drawn()).max() > 1e-3


def test_rescaled_guidance_has_the_deviation_of_what_is_not_guided(unclipped, drawn):
    """Of the velocity, which is what one step adds; half of it is the mean of none and all."""
    noise = unclipped.noise(0, 3)
    sampler = replace(unclipped.sampler, guidance=4.0)
    none, half, whole = (noise - drawn(replace(sampler, rescale=phi)) for phi in (0.0, 0.5, 1.0))
    plain = noise - drawn(replace(sampler, guidance=1.0))
    np.testing.assert_allclose(whole.std(axis=(1, 2, 3)), plain.std(axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(half, (none + whole) / 2, atol=1e-5)
    assert (np.abs(none.std(axis=(1, 2, 3)) / plain.std(axis=(1, 2, 3)) - 1) > 1e-3).all()


def test_samples_are_led_away_from_those_of_the_worse_system_by_the_scale(unclipped, drawn, worse):
    """b + w (c - b), with guidance of its own in c alone."""
    good, bad = (
        drawn(),
        unclipped.sample(worse.trained, WORDS, seed=0, sampler=replace(unclipped.sampler, guidance=1.0)),
    )
    assert np.abs(good - bad).max() > 1e-3
    np.testing.assert_allclose(drawn(worse=worse), bad + 3 * (good - bad), atol=1e-5)
    np.testing.assert_allclose(drawn(worse=worse._replace(scale=1.0)), good, atol=1e-5)


def test_a_scale_is_no_new_program(unclipped, params, worse):
    unclipped.sample(params, WORDS, seed=0, worse=worse)
    size = sampling._draw._cache_size()
    unclipped.sample(params, WORDS, seed=1, worse=worse._replace(scale=1.5))
    assert sampling._draw._cache_size() == size


def test_a_system_that_knows_other_paths_or_words_or_sizes_is_refused(task):
    check_worse(task, task, task.sampler)
    others = {
        "a worse run is of the same process, RectifiedFlow": replace(task, process=VP()),
        "a worse run is of the same space, Pixels": replace(task, space=Latents()),
        "a worse run is of the same condition, Text": replace(task, condition=replace(task.condition, dropout=0.0)),
    }
    for sentence, other in others.items():
        with pytest.raises(InputError, match=sentence):
            check_worse(task, other, task.sampler)


def test_a_worse_system_of_one_time_is_refused_where_steps_are_jumps(task):
    told = replace(task, prediction=MeanVelocity())
    check_worse(told, told, replace(task.sampler, solver=Jump()))
    with pytest.raises(InputError, match="predicts Velocity"):
        check_worse(told, task, replace(task.sampler, solver=Jump()))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"interval": (0.6, 0.4)}, "interval of guidance is two times, 0 <= low <= high <= 1, not 0.6 and 0.4"),
        ({"interval": (0.0, 1.5)}, "not 0 and 1.5"),
        ({"rescale": -0.1}, r"rescale of guidance lies in \[0, 1\], not at -0.1"),
        ({"steps": 0}, "steps is the number of sampling steps, at least 1, not 0"),
    ],
)
def test_what_is_no_sampler_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        Sampler(**fields)
