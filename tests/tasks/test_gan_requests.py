"""Laws of what a GAN is asked: figures tell the data from noise, and bad requests are refused."""

from dataclasses import replace

import numpy as np
import pytest

from genjax.errors import InputError
from genjax.runs.parts import Parts
from genjax.tasks.gan import GAN
from tests.tasks.test_gan import PICTURES, TOY

PARTS = Parts({"generator": {}, "critic": {}})


def replaying(monkeypatch, drawn):
    """A generator that gives what was prepared, whatever the latents."""
    monkeypatch.setattr(GAN, "sample", lambda self, params, z, labels=None: drawn(len(z)))


def test_points_of_the_data_find_every_mode(monkeypatch):
    modes = np.asarray(TOY.data.modes)
    rng = np.random.default_rng(0)
    replaying(monkeypatch, lambda n: modes[np.arange(n) % 25] + TOY.data.noise * rng.normal(size=(n, 2)))
    (figures,) = replace(TOY.request("evaluate"), num=64)(TOY, PARTS)
    assert figures.values["modes_found"] == figures.values["modes"] == 25
    assert figures.values["high_quality"] > 0.95
    assert figures.values["wasserstein_1"] < 2


def test_one_point_finds_one_mode_and_nothing_between_them(monkeypatch):
    replaying(monkeypatch, lambda n: np.tile(np.asarray(TOY.data.modes)[3], (n, 1)))
    (figures,) = replace(TOY.request("evaluate"), num=64)(TOY, PARTS)
    assert (figures.values["modes_found"], figures.values["high_quality"]) == (1, 1.0)
    replaying(monkeypatch, lambda n: np.tile(np.asarray(TOY.data.modes)[:2].mean(0), (n, 1)))
    (figures,) = replace(TOY.request("evaluate"), num=64)(TOY, PARTS)
    assert (figures.values["modes_found"], figures.values["high_quality"]) == (0, 0.0)


def test_real_pictures_show_all_classes_and_one_class_alone_does_not(monkeypatch):
    source = PICTURES.data.source("train")
    images = np.stack([source[i]["image"] for i in range(300)])
    zeros = np.stack([source[i]["image"] for i in range(300) if source[i]["label"] == 0])
    for drawn, classes in ((images, 10), (np.tile(zeros, (20, 1, 1, 1)), 1)):
        replaying(monkeypatch, lambda n, drawn=drawn: drawn[:n])
        (figures,) = replace(PICTURES.request("evaluate"), num=200)(PICTURES, PARTS)
        assert figures.values["classes_found"] == classes


def test_an_interpolation_begins_and_ends_at_the_samples(monkeypatch):
    seen = {}

    def sample(self, params, z, labels=None):
        seen["z"] = z
        return np.zeros((len(z), 8, 8, 1), np.float32)

    monkeypatch.setattr(GAN, "sample", sample)
    (images,) = replace(PICTURES.request("sample"), num=3, interpolate=2)(PICTURES, PARTS)
    z = PICTURES.latents(0, 3)
    np.testing.assert_allclose(seen["z"][[0, 3, 4, 7]], z[[0, 1, 1, 2]], atol=1e-5)
    assert images.columns == 4


def test_points_are_drawn_as_one_picture_and_kept_as_numbers(monkeypatch):
    replaying(monkeypatch, lambda n: np.asarray(TOY.data.modes)[np.arange(n) % 25])
    (picture,) = replace(TOY.request("sample"), num=50)(TOY, PARTS)
    assert picture.images.shape == (1, 768, 768, 3)
    assert picture.arrays["points"].shape == (50, 2)


@pytest.mark.parametrize(
    ("task", "door", "wrong", "said"),
    [
        (TOY, "sample", {"num": 0}, "--num"),
        (TOY, "sample", {"truncation": 0.0}, "--truncation"),
        (TOY, "sample", {"interpolate": 3}, "the samples of this run are points"),
        (PICTURES, "sample", {"interpolate": -1}, "--interpolate is a number of steps, 0 or more, not -1"),
        (PICTURES, "sample", {"num": 1, "interpolate": 3}, "--num is at least 2, not 1"),
        (TOY, "evaluate", {"num": 1}, "--num"),
        (TOY, "evaluate", {"seed": -1}, "--seed is from 0 to"),
        (PICTURES, "evaluate", {"num": 1}, "--num"),
    ],
)
def test_what_cannot_be_done_is_refused(task, door, wrong, said):
    with pytest.raises(InputError, match=said):
        replace(task.request(door), **wrong).check(task)
