import pytest
from hypothesis import given
from hypothesis import strategies as st

from genjax.data.examples import Examples, existing_path, split_items
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
    with pytest.raises(InputError, match=r"data\.test_fraction"):
        split_items(range(count), fraction, split)


def test_a_bad_example_raises_or_is_none():
    def read(item):
        raise InputError(f"{item} is bad.")

    assert Examples(["x.png"], read, on_bad="skip")[0] is None
    with pytest.raises(InputError, match=r"x\.png is bad"):
        Examples(["x.png"], read)[0]


def test_only_bad_input_is_skipped_and_a_defect_is_not():
    with pytest.raises(ZeroDivisionError):
        Examples([0], lambda item: 1 / item, on_bad="skip")[0]


def test_a_path_that_is_not_set_or_not_there_is_refused(tmp_path):
    assert existing_path(str(tmp_path), "a folder") == tmp_path
    with pytest.raises(InputError, match=r"data\.path is not set: it must name a folder"):
        existing_path(None, "a folder")
    with pytest.raises(InputError, match="nowhere does not exist; it must name a folder"):
        existing_path(str(tmp_path / "nowhere"), "a folder")
