import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genjax.config.kinds import kinds
from genjax.data import (
    Densities,
    Digits,
    Emoji,
    Idx,
    ImageFolder,
    Images,
    Npz,
    PointExample,
    Texts,
    TwoMoons,
    WebDataset,
)
from genjax.data.examples import Dataset, Examples, ImageExample, LabelledImages, existing_path, readable, split_items
from genjax.errors import InputError


@given(st.integers(2, 200), st.floats(0.001, 0.999))
def test_a_split_is_a_partition_with_at_least_one_item_on_each_side(count, fraction):
    train, test = (split_items(range(count), fraction, split) for split in ("train", "test"))
    assert sorted(train + test) == list(range(count)) and train and test
    assert abs(len(test) - fraction * count) <= 1


def test_a_split_is_the_same_every_time():
    assert split_items(range(10), 0.3, "test") == split_items(list(range(10)), 0.3, "test") == [2, 4, 8]


@pytest.mark.parametrize(
    ("count", "fraction", "split"),
    [(0, 0.1, "train"), (1, 0.5, "test"), (5, 0.0, "test"), (5, 1.0, "train"), (5, -0.1, "test")],
)
def test_an_empty_split_is_refused(count, fraction, split):
    with pytest.raises(InputError, match="test_fraction"):
        split_items(range(count), fraction, split)


def test_a_bad_example_raises_or_is_none():
    def read(item):
        raise InputError(f"{item} is bad.")

    assert Examples(["x.png"], read, on_bad="skip")[0] is None
    with pytest.raises(InputError, match=r"x\.png is bad"):
        Examples(["x.png"], read)[0]


def test_what_can_be_read_is_read_in_any_order_and_only_when_it_is_asked_for():
    read = []

    def known(item):
        read.append(item)
        if item % 2:
            raise InputError(f"{item} is bad.")
        return 10 * item

    source = Examples(range(6), known, on_bad="skip")
    assert list(readable(source)) == [0, 20, 40]
    assert list(readable(source, [5, 4, 0])) == [40, 0]
    read.clear()
    assert next(readable(source, [3, 2, 0])) == 20 and read == [3, 2]
    with pytest.raises(InputError, match="none of the 6 examples of the dataset can be used"):
        list(readable(source, [1, 3]))
    with pytest.raises(InputError, match="1 is bad"):
        list(readable(Examples(range(6), known)))
    assert list(readable([])) == []


def test_only_bad_input_is_skipped_and_a_defect_is_not():
    with pytest.raises(ZeroDivisionError):
        Examples([0], lambda item: 1 / item, on_bad="skip")[0]


def test_a_path_that_is_not_set_or_not_there_is_refused(tmp_path):
    assert existing_path(str(tmp_path), "a folder") == tmp_path
    with pytest.raises(InputError, match="^path is not set: it must name a folder"):
        existing_path(None, "a folder")
    with pytest.raises(InputError, match="nowhere does not exist; it must name a folder"):
        existing_path(str(tmp_path / "nowhere"), "a folder")


@pytest.mark.parametrize("kind", [Digits, Emoji, Idx, ImageFolder, Images, Npz, WebDataset])
def test_datasets_of_images_say_that_they_give_image_examples_their_shape_and_their_classes(kind):
    assert typing.get_type_hints(kind.source)["return"] == Examples[ImageExample]
    members = {name for protocol in LabelledImages.__mro__ for name in vars(protocol) if not name.startswith("_")}
    assert members == {"source", "image_shape", "class_names"}
    assert members <= {*dir(kind), *kind.__dataclass_fields__}


def test_a_field_of_data_takes_the_datasets_whose_records_it_is_declared_with():
    images = {"Couples", "Digits", "Emoji", "Idx", "ImageFolder", "Images", "Npz", "WebDataset"}
    densities = {"Checkerboard", "EightGaussians", "Pinwheel", "Rings", "TwentyFiveGaussians", "TwoMoons"}
    assert set(kinds(LabelledImages)) == images and set(kinds(Texts)) == {"Text"}
    assert set(kinds(Densities)) == densities and set(kinds(Dataset)) == images | densities | {"Codes", "Text"}


def test_a_record_may_be_anything():
    numbers = Examples[int]([1, 2], lambda item: 10 * item)
    assert (len(numbers), numbers[1]) == (2, 20)
    assert typing.get_args(Dataset[int]) == (int,)


@pytest.mark.parametrize(("dataset", "record"), [(Digits(), ImageExample), (TwoMoons(), PointExample)])
def test_an_example_has_the_fields_of_its_record(dataset, record):
    example, kinds = dataset.source("test")[0], typing.get_type_hints(record)
    assert example.keys() == kinds.keys()
    assert all(isinstance(example[name], typing.get_origin(kind) or kind) for name, kind in kinds.items())
