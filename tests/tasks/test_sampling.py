"""Laws of how samples are led; that a sample is a function of seed, place and wish is with the system."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from genjax.data import Digits
from genjax.diffusion.grids import GivenTimes
from genjax.diffusion.mean_velocity import MeanVelocity
from genjax.diffusion.predictions import Eps, Preconditioned
from genjax.diffusion.processes import EDM, VP
from genjax.diffusion.solvers import Euler, Jump
from genjax.errors import InputError
from genjax.models.unet import UNet
from genjax.parallel.rules import unbox
from genjax.tasks import sampling
from genjax.tasks.conditions import Label
from genjax.tasks.denoising import Denoising
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


@pytest.mark.slow
def test_guidance_outside_its_interval_is_none_and_inside_it_all(unclipped, drawn):
    plain = drawn(replace(unclipped.sampler, guidance=1.0))
    outside, inside = (drawn(replace(unclipped.sampler, interval=ends)) for ends in ((0.0, 0.9), (0.5, 1.0)))
    np.testing.assert_allclose(outside, plain, atol=1e-5)
    np.testing.assert_allclose(inside, drawn(), atol=1e-5)
    assert np.abs(plain - drawn()).max() > 1e-3


def test_estimates_are_kept_in_the_range_that_is_asked_for(unclipped, drawn):
    near = drawn(replace(unclipped.sampler, clip_denoised=0.1))  # one step of a flow ends at the estimate
    np.testing.assert_allclose(near, np.clip(drawn(), -0.1, 0.1), atol=1e-5)
    assert np.abs(drawn()).max() > 0.2


@pytest.mark.slow
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


def test_a_system_that_knows_other_paths_or_classes_or_sizes_is_refused(task):
    small = task.condition.encoder.clone(max_length=20)
    check_worse(task, replace(task, condition=replace(task.condition, dropout=0.0, encoder=small)), task.sampler)
    by_class = replace(task, condition=Label(), data=Digits())
    others = {
        "has the process of the run, RectifiedFlow": (task, replace(task, process=VP())),
        "has the space of the run, Pixels": (task, replace(task, space=Latents())),
        "has the kind of condition and classes of the run, .'prompt',": (task, by_class),
        "and this one has .'label', .'eins'": (by_class, replace(by_class, data=Named(("eins",)))),
        "has the shape of what is noised of the run, .8, 8, 1.,": (task, replace(task, data=Named((), (16, 16, 1)))),
        "the worse run does not fit: Eps needs some data": (task, replace(task, prediction=Eps())),
    }
    for sentence, (one, other) in others.items():
        with pytest.raises(InputError, match=sentence):
            check_worse(one, other, task.sampler)


class Named(NamedTuple):
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...] = (8, 8, 1)


@pytest.mark.slow
def test_a_worse_system_reads_words_in_its_own_way(unclipped, params, worse):
    """By an encoder of shorter texts: its tokens are of another shape."""
    encoder = unclipped.condition.encoder.clone(max_length=20)
    other = replace(unclipped, condition=replace(unclipped.condition, encoder=encoder))
    less = jax.tree.map(lambda leaf: leaf, worse.trained)
    less["text"] = less["text"] | {"positions": less["text"]["positions"][:20]}
    plain = replace(unclipped.sampler, guidance=1.0)
    good, bad = (t.sample(p, WORDS, seed=0, sampler=plain) for t, p in ((unclipped, params), (other, less)))
    led = unclipped.sample(params, WORDS, seed=0, sampler=plain, worse=Worse(other, less, 3.0))
    np.testing.assert_allclose(led, bad + 3 * (good - bad), atol=1e-5)


@pytest.mark.slow
def test_guidance_leads_away_from_what_is_not_wanted_and_without_a_word_from_the_null(unclipped, params, drawn):
    plain = replace(unclipped.sampler, guidance=1.0)
    good = drawn(plain)
    bad = unclipped.sample(params, ["a handwritten nine"] * 3, seed=0, sampler=plain)
    led = drawn(replace(unclipped.sampler, guidance=3.0), negative="a handwritten nine")
    np.testing.assert_allclose(led, bad + 3 * (good - bad), atol=1e-5)
    np.testing.assert_allclose(drawn(negative=""), drawn(), atol=1e-5)


@pytest.mark.slow
def test_the_interval_is_of_times_whatever_the_network_sees_of_them():
    """EDM's network sees log(sigma) / 4, which is 0.9 where t is 0.5."""
    task = Denoising(
        model=UNet(channels=1, widths=(8,), blocks=1, attention_levels=(), middle_attention=False, groups=4,
                   num_classes=10, null_class=True),
        condition=Label(),
        space=Latents(),
        process=EDM(),
        prediction=Preconditioned(),
        sampler=Sampler(Euler(), steps=1, guidance=3.0, grid=GivenTimes((0.5, 0.4))),
        data=Digits(),
    )  # fmt: skip
    shapes = unbox(jax.eval_shape(task.init, jax.random.key(0)))
    rng = np.random.default_rng(1)
    trained = jax.tree.map(lambda leaf: np.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes).trained

    def drawn(**fields):
        return task.sample(trained, ["one"], seed=0, sampler=replace(task.sampler, **fields))

    whole, none = drawn(), drawn(guidance=1.0)
    assert np.abs(whole - none).max() > 1e-3
    np.testing.assert_allclose(drawn(interval=(0.45, 0.55)), whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(drawn(interval=(0.85, 0.95)), none, rtol=1e-4, atol=1e-4)


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
        ({"clip_denoised": 0.0}, "clip_denoised is positive"),
        ({"clip_denoised": 1.0, "solver": Jump()}, "Jump steps along mean velocities"),
        ({"rescale": -0.1}, r"rescale of guidance lies in \[0, 1\], not at -0.1"),
        ({"steps": 0}, "steps is the number of sampling steps, at least 1, not 0"),
    ],
)
def test_what_is_no_sampler_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        Sampler(**fields)
