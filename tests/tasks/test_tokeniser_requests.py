"""Laws of what a tokeniser answers: pairs of pictures, ways that begin and end at reconstructions, figures of a set."""

import jax
import numpy as np
import pytest
from PIL import Image

from genjax.data import Codes
from genjax.errors import InputError
from genjax.metrics.distortion import psnr
from genjax.metrics.frechet import frechet_distance
from genjax.runs.outputs import Numbers
from genjax.tasks.tokeniser_requests import JudgeReconstructions, Reconstruct
from tests.tasks.test_tokeniser import PLAIN, parts_of, with_bottleneck


@pytest.fixture(scope="module")
def parts():
    return parts_of(PLAIN)


@pytest.fixture
def picture(tmp_path):
    def saved(height, width):
        pixels = np.random.default_rng(0).integers(0, 256, size=(height, width), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        return str(tmp_path / "picture.png"), pixels[..., None] / 127.5 - 1

    return saved


def test_each_picture_stands_beside_its_reconstruction(parts):
    (output,) = Reconstruct(num=3)(PLAIN, parts)
    images = PLAIN.pictures("test", 3)
    drawn = PLAIN.drawn_from(parts, PLAIN.vectors_of(parts, images))
    np.testing.assert_array_equal(output.images[0::2], images)
    np.testing.assert_array_equal(output.images[1::2], drawn)
    assert output.columns % 2 == 0 and f"{psnr(images, drawn).mean():.2f} dB" in output.said
    assert f"{16 * np.log2(6):.0f} bits each" in output.said


def test_a_picture_of_ones_own_may_have_any_sides_that_the_stride_divides(parts, picture):
    path, pixels = picture(10, 6)
    request = Reconstruct(image=path)
    request.check(PLAIN)
    (output,) = request(PLAIN, parts)
    assert output.images.shape == (2, 10, 6, 1)
    np.testing.assert_allclose(output.images[0], pixels, atol=1e-6)


def test_a_way_begins_and_ends_at_reconstructions(parts):
    (output,) = Reconstruct(num=3, interpolate=2)(PLAIN, parts)
    drawn = PLAIN.drawn_from(parts, PLAIN.vectors_of(parts, PLAIN.pictures("test", 3)))
    assert output.columns == 4 and len(output.images) == 8
    np.testing.assert_allclose(output.images[[0, 3, 4, 7]], drawn[[0, 1, 1, 2]], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["average", "residual", "posterior"])
def test_figures_are_of_all_held_out_pictures(name):
    task = with_bottleneck(name)
    parts = parts_of(task)
    (output,) = JudgeReconstructions()(task, parts)
    assert isinstance(output, Numbers)
    images = task.pictures("test")
    drawn = task.drawn_from(parts, task.vectors_of(parts, images))
    values = output.values
    assert values["psnr"] == pytest.approx(psnr(images, drawn).mean(), rel=1e-6)
    assert values["test_images"] == len(images) == 540
    assert values["mean_absolute_error"] == pytest.approx(np.abs(images - drawn).mean(), rel=1e-5)
    train, test, made = (each.reshape(len(each), -1) for each in (task.pictures("train"), images, drawn))
    assert values["frechet_distance"] == pytest.approx(frechet_distance(made, test), rel=1e-6)
    assert values["frechet_distance_train_to_test"] == pytest.approx(frechet_distance(train, test), rel=1e-6)
    if name == "posterior":
        assert values["numbers_per_picture"] == 48 and "usage" not in values
        return
    assert values["positions_counted"] == 540 * 16
    assert values["bits_per_picture"] == pytest.approx(16 * task.levels * np.log2(6))
    assert ("usage/level=1" in values) is (name == "residual")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num": 0}, "--num is the number of pictures, at least 1, not 0"),
        ({"interpolate": -1}, "--interpolate is a number of steps, 0 or more, not -1"),
        ({"interpolate": 1, "num": 1}, "--num is at least 2, not 1"),
        ({"interpolate": 1, "image": "x.png"}, "leave one out"),
        ({"image": "none.png"}, "there is none at none.png"),
        ({"codes": True, "interpolate": 1}, "--codes are of the pictures of the data alone"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        Reconstruct(**options).check(PLAIN)


def test_sides_that_the_stride_does_not_divide_are_refused(picture):
    path, _ = picture(9, 6)
    with pytest.raises(InputError, match="sides of 9 and 6 pixels, and this run takes multiples of 2"):
        Reconstruct(image=path).check(PLAIN)


def test_every_door_has_a_request():
    assert {type(PLAIN.request(door)) for door in ("sample", "preview")} == {Reconstruct}
    assert isinstance(PLAIN.request("evaluate"), JudgeReconstructions)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["average", "residual", "posterior"])
def test_the_codes_of_all_pictures_are_written_for_a_second_stage(tmp_path, name):
    task = with_bottleneck(name)
    parts = parts_of(task)
    (output,) = Reconstruct(codes=True)(task, parts)
    output.write(tmp_path)
    data = Codes(path=str(tmp_path))
    images = task.pictures("train", 70)
    expected = task.vectors_of(parts, images) if name == "posterior" else task.ids_of(parts, images)
    np.testing.assert_allclose(np.stack([data.source("train")[i]["codes"] for i in range(70)]), expected, atol=1e-6)
    assert (data.size, data.fingerprint) == (0 if name == "posterior" else 6, task.fingerprint(parts))
    moved = jax.tree.map(lambda leaf: leaf + 1e-6, parts.trained["autoencoder"])
    assert task.fingerprint(parts._replace(trained={"autoencoder": moved})) != data.fingerprint
