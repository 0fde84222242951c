import numpy as np
import pytest

from genjax.data import Digits


@pytest.fixture(scope="module")
def splits():
    digits = Digits()
    return {split: list(digits.source(split)) for split in ("train", "test")}


def test_the_splits_have_1257_and_540_digits_and_no_row_in_common():
    rows = {split: list(Digits().source(split).items) for split in ("train", "test")}
    assert (len(rows["train"]), len(rows["test"])) == (1257, 540)
    assert sorted(rows["train"] + rows["test"]) == list(range(1797))


def test_the_split_is_stratified(splits):
    shares = [np.bincount([e["label"] for e in splits[s]], minlength=10) / len(splits[s]) for s in ("train", "test")]
    np.testing.assert_allclose(shares[0], shares[1], atol=2e-3)


def test_the_split_is_the_same_every_time():
    assert Digits().source("test").items[:5] == [312, 1429, 893, 1375, 159]


def test_images_fill_the_unit_range_at_the_shape_that_is_told(splits):
    images = np.stack([example["image"] for examples in splits.values() for example in examples])
    assert images.shape[1:] == Digits().image_shape == (8, 8, 1) and images.dtype == np.float32
    assert images.min() == -1 and images.max() == 1 and len(np.unique(images)) == 17


def test_pixels_take_the_levels_that_are_told_and_no_others(splits):
    values = np.unique([example["image"] for split in splits.values() for example in split])
    np.testing.assert_array_equal(values, np.linspace(-1, 1, Digits().levels))


def test_captions_name_the_label(splits):
    for example in splits["test"]:
        assert all(Digits().class_names[example["label"]] in caption for caption in example["captions"])
