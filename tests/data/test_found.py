"""Laws of finding the kind of a dataset by what lies at its path."""

from dataclasses import fields, replace

import numpy as np
import pytest

from genjax.data import Digits, Idx, ImageFolder, Images, Npz, WebDataset
from genjax.errors import InputError


@pytest.mark.parametrize(
    ("files", "path", "kind"),
    [
        ([], None, Digits),
        (["a.npz"], "a.npz", Npz),
        (["a.tar"], "a.tar", WebDataset),
        (["a.tar", "b.tar"], ".", WebDataset),
        ([], "shards-*.tar", WebDataset),
        (["train-images-idx3-ubyte"], ".", Idx),
        (["train-images-idx3-ubyte.gz"], ".", Idx),
        (["x.png", "x.txt"], ".", ImageFolder),
        (["metadata.jsonl"], ".", ImageFolder),
    ],
)
def test_what_lies_at_the_path_tells_the_kind(tmp_path, files, path, kind):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    assert type(Images(path and str(tmp_path / path)).dataset) is kind


def test_fields_reach_the_dataset(tmp_path):
    given = dict(image_size=32, channels=1, flip=True, on_bad="skip", test_fraction=0.5)
    assert Images(str(tmp_path), **given).dataset == ImageFolder(str(tmp_path), **given)
    assert Images(str(tmp_path / "a.tar"), **given).dataset == WebDataset(str(tmp_path / "a.tar"), **given)


def test_the_default_is_the_digits():
    images, digits = Images(), Digits()
    assert (images.image_shape, images.class_names) == (digits.image_shape, digits.class_names)
    assert len(images.source("train")) == len(digits.source("train")) == 1257


@pytest.fixture
def kinds(tmp_path) -> dict[str, str | None]:
    """A path to each kind that has a size of its own: the digits' 8x8x1, an Npz of 4x6x2, an Idx of 5x5x1."""
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 4, 6, 2), np.float32), captions=np.array(["a"] * 4))
    (tmp_path / "idx").mkdir()
    for split in ("train", "t10k"):
        images, labels = np.zeros((4, 5, 5), np.uint8), np.zeros(4, np.uint8)
        for kind, array in (("images", images), ("labels", labels)):
            header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
            (tmp_path / "idx" / f"{split}-{kind}-idx{array.ndim}-ubyte").write_bytes(header + array.tobytes())
    return {"digits": None, "npz": str(tmp_path / "a.npz"), "idx": str(tmp_path / "idx")}


@pytest.mark.parametrize(
    ("kind", "asked", "shape"),
    [
        ("digits", dict(image_size=16), "8x8 with 1 channel,"),
        ("digits", dict(image_size=64), "8x8 with 1 channel,"),
        ("digits", dict(image_size=8, channels=3), "8x8 with 1 channel,"),
        ("npz", dict(image_size=4), "4x6 with 2 channels"),
        ("npz", dict(channels=3), "4x6 with 2 channels"),
        ("idx", dict(image_size=28), "5x5 with 1 channel,"),
    ],
)
def test_a_size_that_the_images_do_not_have_is_refused(kinds, kind, asked, shape):
    with pytest.raises(InputError, match=f"^{sorted(asked)[0]} = .*{shape}"):
        Images(kinds[kind], **asked).source("train")


@pytest.mark.parametrize(
    ("kind", "asked"),
    [("digits", dict(image_size=8, channels=1)), ("npz", dict(channels=2)), ("idx", dict(image_size=5, channels=1))],
)
def test_the_size_that_the_images_have_may_be_said(kinds, kind, asked):
    images = Images(kinds[kind], **asked)
    assert images.image_shape == images.source("train")[0]["image"].shape


@pytest.mark.parametrize("kind", ["digits", "npz", "idx"])
@pytest.mark.parametrize(("name", "value"), [("flip", True), ("on_bad", "skip"), ("test_fraction", 0.5)])
def test_a_field_either_reaches_the_dataset_or_is_refused(kinds, kind, name, value):
    images = Images(kinds[kind], **{name: value})
    if (kind, name) == ("npz", "test_fraction"):
        assert images.dataset.test_fraction == value
    else:
        with pytest.raises(InputError, match=f"^{name} = {value} changes nothing"):
            images.source("train")


def test_every_field_of_the_options_is_spoken_of_above():
    """Whoever adds a field decides here what the kinds that lack it do."""
    spoken_of = {"path", "image_size", "channels", "flip", "on_bad", "test_fraction"}
    assert {field.name for field in fields(Images)} == spoken_of


def test_a_path_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="/no/such/folder"):
        replace(Images(), path="/no/such/folder").source("train")
