"""Laws of samples that start from an image: what is noised, what is left of it, and an inversion that comes back."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from genjax.data import Digits
from genjax.diffusion.grids import UniformTimes
from genjax.diffusion.predictions import V
from genjax.diffusion.process import RectifiedFlow, noised
from genjax.diffusion.processes import EDM, VP
from genjax.diffusion.solvers import SOLVERS, DPMppSDE2M, Euler, Heun, Jump
from genjax.errors import InputError
from genjax.keys import row_keys
from genjax.tasks import sampling
from genjax.tasks.conditions import Label, Nothing
from genjax.tasks.denoising import Denoising, Sampler
from genjax.tasks.sampling import check
from genjax.tasks.spaces import Latents
from genjax.tasks.starts import Start
from tests.tasks.networks import Silent

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
WORDS = ["seven"] * 3


def test_a_start_takes_its_share_of_the_steps_from_the_end():
    times = np.linspace(1, 0, 11)
    np.testing.assert_array_equal(Start(IMAGES, 1.0).times(times), times)
    np.testing.assert_array_equal(Start(IMAGES, 0.3).times(times), times[-4:])
    np.testing.assert_array_equal(Start(IMAGES, 0.01).times(times), times[-2:])
    for strength in (0.0, -1.0, 1.01):
        with pytest.raises(InputError, match="^strength is a share of the steps, above 0 and at most 1"):
            Start(IMAGES, strength).times(times)


@pytest.mark.slow
def test_it_begins_at_the_image_noised_to_the_time_of_its_strength(task, params):
    raw = replace(task, space=Latents(), sampler=replace(task.sampler, steps=8, solver=Euler()))
    states = raw.sample(params, WORDS, seed=4, start=Start(IMAGES, 0.5), trajectory=True)
    assert len(states) == 5
    eps = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(row_keys(4, jnp.arange(3)))
    np.testing.assert_allclose(states[0], noised(task.process, IMAGES, eps, jnp.float32(0.5)), atol=1e-6)


def test_of_a_path_that_forgets_the_data_a_start_of_full_strength_is_no_start(task, params):
    plain = task.sample(params, WORDS, seed=4)
    np.testing.assert_allclose(task.sample(params, WORDS, seed=4, start=Start(IMAGES[:1], 1.0)), plain, atol=1e-6)


@pytest.mark.parametrize(("solver", "taylor"), [(Euler(), (1, 1)), (Heun(), (1, 1, 1 / 2))])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_an_inverted_image_comes_back_up_to_the_error_of_the_solver(solver, taylor, strength):
    """Of the flow x' = k x, of which a step of size h multiplies by the Taylor polynomial of e^(k h)."""
    steps, k = 8, 1.7
    flow = Denoising(
        model=Silent(),
        condition=Nothing(),
        space=Latents(),
        data=Digits(),
        sampler=Sampler(solver, steps=steps, guidance=1.0, grid=UniformTimes()),
    )
    trained = {"model": {"says": jnp.float32(k)}}
    back = flow.sample(trained, [""] * 3, seed=0, start=Start(IMAGES, strength, inverted=True))
    there, here = (sum(c * (sign * k / steps) ** n for n, c in enumerate(taylor)) for sign in (1, -1))
    np.testing.assert_allclose(back, IMAGES * (there * here) ** (strength * steps), rtol=1e-5)


class Told(Silent):
    """Says k x, where the label decides k: 0.1 of it."""

    def __call__(self, x_t, t, label):
        return 0.1 * label[:, None, None, None] * x_t


@pytest.mark.parametrize(("dropout", "carried_as"), [(0.1, 10), (0.0, 7)])
def test_it_is_carried_to_noise_told_nothing_unless_the_null_was_never_trained(dropout, carried_as):
    """And comes back as what is wanted, in steps of 1 + k h: k is that of the null (10), or of the label (7)."""
    steps = 8
    flow = Denoising(
        model=Told(),
        condition=Label(dropout=dropout),
        space=Latents(),
        data=Digits(),
        sampler=Sampler(Euler(), steps=steps, guidance=1.0, grid=UniformTimes()),
    )
    back = flow.sample({"model": {}}, ["seven"] * 3, seed=0, start=Start(IMAGES, 1.0, inverted=True))
    factor = (1 + 0.1 * carried_as / steps) * (1 - 0.7 / steps)
    np.testing.assert_allclose(back, IMAGES * factor**steps, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("process", [RectifiedFlow(), VP(), EDM()], ids=lambda process: type(process).__name__)
def test_an_inversion_is_finite_or_refused(process):
    told = 0
    for solver in SOLVERS:
        flow = Denoising(
            model=Silent(),
            condition=Nothing(),
            space=Latents(),
            process=process,
            prediction=V(),
            data=Digits(),
            sampler=Sampler(solver, steps=4, guidance=1.0, grid=UniformTimes(first=0.9)),
        )
        try:
            check(flow, flow.sampler, Start(IMAGES, 1.0, inverted=True))
        except InputError:
            continue
        told += 1
        samples = flow.sample({"model": {"says": 0.5}}, [""], seed=0, start=Start(IMAGES[:1], 1.0, inverted=True))
        assert np.isfinite(samples).all(), solver
    assert told >= 2


@pytest.mark.parametrize(
    ("start", "solver", "sentence"),
    [
        (Start(np.zeros((1, 16, 16, 1), np.float32), 0.5), Euler(), "is of shape .16, 16, 1., .* are of .8, 8, 1."),
        (Start(IMAGES, 0.0), Euler(), "strength is a share"),
        (Start(IMAGES[:2], 0.5), Euler(), "3 samples start from one image, or from one each, not from 2"),
        (Start(IMAGES, 0.5, inverted=True), DPMppSDE2M(), "DPMppSDE2M draws noise, and an inversion follows the ODE"),
        (Start(IMAGES, 0.5, kept=np.ones((3, 8, 8, 3))), Euler(), "what is kept of an image is of shape .3, 8, 8, 3.,"),
        (Start(IMAGES, 0.5, kept=np.ones((2, 8, 8, 1))), Euler(), "what is kept of an image is of shape .2, 8, 8, 1.,"),
        (Start(IMAGES, 0.5, True, np.ones((1, 8, 8, 1))), Euler(), "not where it was inverted"),
    ],
)
def test_what_cannot_be_started_from_is_refused(task, params, start, solver, sentence):
    with pytest.raises(InputError, match=sentence):
        task.sample(params, WORDS, seed=0, sampler=replace(task.sampler, solver=solver), start=start)


def test_what_is_kept_is_refused_of_a_solver_that_makes_no_estimate_of_it():
    start = Start(IMAGES, 0.5, kept=np.ones((1, 8, 8, 1), np.float32))
    with pytest.raises(InputError, match="kept in part by estimates of the data, and Jump steps along mean velocities"):
        sampling._check_kept(start, Sampler(Jump(), steps=2, guidance=1.0), 3)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_what_is_kept_of_an_image_is_there_in_the_end_and_the_rest_is_drawn(task, params, strength):
    kept = np.zeros((1, 8, 8, 1), np.float32)
    kept[:, :, :4] = 1
    drawn = task.sample(params, WORDS, seed=0, start=Start(IMAGES, strength, kept=kept))
    np.testing.assert_allclose(drawn[:, :, :4], IMAGES[:, :, :4], rtol=0, atol=1e-5)
    assert np.abs(drawn[:, :, 4:] - IMAGES[:, :, 4:]).max() > 0.1
    one = task.sample(params, WORDS, seed=0, start=Start(IMAGES[:1], strength, kept=np.repeat(kept, 3, axis=0)))
    np.testing.assert_allclose(one[:, :, :4], np.repeat(IMAGES[:1, :, :4], 3, axis=0), rtol=0, atol=1e-5)
    nothing, plain = (
        task.sample(params, WORDS, seed=0, start=Start(IMAGES, strength, kept=k)) for k in (0 * kept, None)
    )
    np.testing.assert_allclose(nothing, plain, rtol=0, atol=1e-5)


def test_at_the_door_an_image_is_a_file_of_the_runs_size(task, parts, tmp_path):
    """And samples from it say so; what is no such file, or goes with no image, is refused before weights are read."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "8.png")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "9.png")
    asked = replace(task.request("sample"), num=2, image=str(tmp_path / "8.png"), strength=0.4)
    asked.check(task)
    (pictures,) = asked(task, parts)
    image = pixels[None, :, :, None] / np.float32(127.5) - 1
    expected = task.sample(parts.trained, pictures.captions, seed=0, start=Start(image, 0.4))
    np.testing.assert_allclose(pictures.images, expected, atol=1e-6)
    assert f"the last 1 of 3 steps, guidance 2, 2 network evaluations each, from {tmp_path}" in pictures.said
    (pictures,) = replace(asked, mask=str(tmp_path / "8.png"), negative="a handwritten nine")(task, parts)
    start = Start(image, 0.4, kept=np.float32(image < 0))
    led = task.sample(parts.trained, pictures.captions, seed=0, negative="a handwritten nine", start=start)
    np.testing.assert_allclose(pictures.images, led, atol=1e-6)
    for wrong, sentence in (
        ({"image": str(tmp_path / "9.png")}, "is of shape .8, 9, 1."),
        ({"image": str(tmp_path / "none.png")}, "--image is a PNG, JPEG or WebP file, and there is none at .*none.png"),
        ({"image": str(tmp_path)}, "--image is a PNG, JPEG or WebP file, and there is none at"),
        ({"image": None, "inversion": True}, "--inversion is of an --image, and none is given"),
        ({"image": None, "mask": "8.png"}, "--mask says what is drawn anew of an --image, and none is given"),
        ({"mask": str(tmp_path / "none.png")}, "--mask is a PNG, JPEG or WebP file, and there is none at .*none.png"),
        ({"mask": str(tmp_path / "9.png")}, "what is kept of an image is of shape .1, 8, 9, 1., and .8, 8, 1. of each"),
        ({"negative": "x" * 99}, "text encoder takes at most"),
        ({"negative": "a", "guidance": 1.0}, "--negative is what guidance leads away from, and --guidance 1 is none"),
        ({"strength": 2.0}, "^strength is a share"),
        ({"couples": True}, "not with --image, --classifier, --worse or --trajectory"),
    ):
        with pytest.raises(InputError, match=sentence):
            replace(asked, **wrong).check(task)
    with pytest.raises(InputError, match="--image is a picture, and the space of this run is Latents"):
        asked.check(replace(task, space=Latents()))
