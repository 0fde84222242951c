"""Laws of couples: what the door has written is read, row by row, and what is no such file is refused."""

import numpy as np
import pytest

from genjax.data import Couples, Digits, real
from genjax.errors import InputError

RNG = np.random.default_rng(0)
NOISE, PICTURES = RNG.normal(size=(2, 40, 8, 8, 1)).astype(np.float32)
LABELS = np.arange(40) % 10


def written(path, **changes):
    arrays = {"images": PICTURES, "noise": NOISE, "labels": LABELS} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return Couples(path=str(path), test_fraction=0.25)


def test_each_image_keeps_its_noise_and_its_label_and_lies_in_one_split(tmp_path):
    data = written(tmp_path / "couples.npz")
    examples = [*data.source("train"), *data.source("test")]
    assert (len(data.source("train")), len(data.source("test"))) == (30, 10)
    found = set()
    for example in examples:
        (row,) = np.flatnonzero((example["image"] == PICTURES).all(axis=(1, 2, 3)))
        np.testing.assert_array_equal(example["noise"], NOISE[row])
        assert example["label"] == LABELS[row] and data.class_names[LABELS[row]] in example["captions"][0]
        found.add(row)
    assert len(found) == 40


def test_without_labels_nothing_is_known_of_an_image(tmp_path):
    example = written(tmp_path / "couples.npz", labels=np.full(40, -1)).source("train")[0]
    assert (example["label"], example["captions"]) == (-1, ("",))


def test_samples_are_judged_by_the_images_that_the_system_had_learned_from(tmp_path):
    data = written(tmp_path / "couples.npz")
    assert real(data) == Digits() and real(Digits()) == Digits()
    assert data.class_names == Digits().class_names and data.image_shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"noise": None}, "it is not a couples.npz"),
        ({"noise": NOISE[:, :4]}, "images and noise are of one shape"),
        ({"images": PICTURES[:, :4], "noise": NOISE[:, :4]}, "of one shape .N, 8, 8, 1."),
        ({"noise": NOISE * np.inf}, "values that are not finite"),
        ({"labels": LABELS[:3]}, "with a label for each"),
        ({"labels": LABELS + 5}, "labels are those of 10 classes, or -1"),
    ],
)
def test_what_is_no_couples_is_refused(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        written(tmp_path / "couples.npz", **changes).source("train")


@pytest.mark.parametrize("contents", [b"", b"no archive"])
def test_a_file_of_other_contents_is_refused(tmp_path, contents):
    (tmp_path / "couples.npz").write_bytes(contents)
    with pytest.raises(InputError, match="it is not a couples.npz"):
        Couples(path=str(tmp_path / "couples.npz")).source("train")
    np.save(tmp_path / "array.npy", NOISE)
    with pytest.raises(InputError, match="it is not a couples.npz"):
        Couples(path=str(tmp_path / "array.npy")).source("train")


def test_a_run_that_has_learned_from_couples_needs_them_no_more():
    assert Couples(path="gone.npz").image_shape == (8, 8, 1)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(InputError, match="path is not set"):
        Couples().source("train")
    with pytest.raises(InputError, match="nowhere.npz"):
        Couples(path="nowhere.npz").source("train")
