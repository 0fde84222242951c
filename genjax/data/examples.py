"""What a dataset gives: random access to examples, some of which may turn out bad when they are read."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypedDict, TypeVar

import numpy as np

from genjax.errors import InputError

__all__ = [
    "Dataset",
    "Examples",
    "ImageExample",
    "LabelledImages",
    "OnBad",
    "Split",
    "existing_path",
    "readable",
    "real",
    "split_items",
]

Split = Literal["train", "test"]
OnBad = Literal["error", "skip"]
Item = TypeVar("Item")
Record = TypeVar("Record")

# Which examples are the test split is part of a result: it never follows the seed of a run.
SPLIT_SEED = 0


class Dataset(Protocol[Record]):
    """Every dataset of this package, to those who use one: records of one kind, in splits.

    A record is a `TypedDict` that the dataset states: an image with its captions, a point of the plane. A task says by
    the protocol of its `data` which kind it takes: `LabelledImages`, `Texts` or `Densities`; others are refused.
    """

    def source(self, split: Split) -> "Examples[Record]":
        """Random access to the examples of a split.

        Raises `InputError` when the data is missing or its index is bad.
        """


class ImageExample(TypedDict):
    """One image with what is known of it."""

    image: np.ndarray
    """float32 (H, W, C); pixels are in [-1, 1]."""
    captions: tuple[str, ...]
    """Candidate captions, at least one; the task draws one each time."""
    label: int
    """Index into `class_names`, or -1 when the class is unknown."""


class LabelledImages(Dataset[ImageExample], Protocol):
    """A dataset of images of one shape, with captions and perhaps classes."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label; empty when there are no classes."""

    # One that was made of other data says so: `of`, what it was made of. One whose pixels do not take the 256 levels of
    # a byte says how many they take: `levels`, None where they are any numbers.


def real(data: LabelledImages) -> LabelledImages:
    """The images that samples are judged by: those that `data` was made `of`, where it was, or `data` itself."""
    return getattr(data, "of", data)


@dataclass(frozen=True)
class Examples(Generic[Record]):
    """A Grain random-access source: `read(item)` for each of `items`, a record of one kind.

    With `on_bad="skip"` an example that cannot be read is None, which the loader passes over and counts; with "error"
    its `InputError` goes up to whoever asked. `augment(example, rng)`, when given, is drawn anew at every reading.
    """

    items: Sequence
    read: Callable[..., Record]
    on_bad: OnBad = "error"
    augment: Callable[[Record, np.random.Generator], Record] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record | None:
        try:
            return self.read(self.items[index])
        except InputError:
            if self.on_bad == "skip":
                return None
            raise


def readable(source: Sequence[Record | None], order: Iterable[int] | None = None) -> Iterator[Record]:
    """The examples of a source that can be read, in its order or in another one, each read when it is asked for.

    Raises `InputError` where there are examples, and none that can be used.
    """
    found = False
    for index in range(len(source)) if order is None else order:
        if (example := source[index]) is not None:
            found = True
            yield example
    if len(source) and not found:
        raise InputError(f"none of the {len(source)} examples of the dataset can be used.")


def split_items(items: Sequence[Item], test_fraction: float, split: Split) -> list[Item]:
    """The items of one split: a fixed permutation, cut at `test_fraction`, each part in its original order.

    At least one item is in the test split and at least one in the train split, when the fraction is above 0 and there
    are two or more. Raises `InputError` when the fraction is not in [0, 1) or the split is empty.
    """
    if not 0 <= test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction}; it must be at least 0 and below 1.")
    count = len(items)
    test_count = min(max(1, round(test_fraction * count)), count - 1) if test_fraction and count else 0
    # numpy promises that RandomState never changes its stream, and makes no such promise for Generator.
    order = np.random.RandomState(SPLIT_SEED).permutation(count)
    chosen = np.sort(order[:test_count] if split == "test" else order[test_count:])
    if not len(chosen):
        raise InputError(
            f"the {split} split is empty: there are {count} examples and test_fraction is {test_fraction}."
        )
    return [items[index] for index in chosen]


def existing_path(path: str | None, expected: str) -> Path:
    """`path` as a Path. Raises `InputError` when it is None or nothing is there; `expected` says what should be."""
    if path is None:
        raise InputError(f"path is not set: it must name {expected}.")
    if not Path(path).exists():
        raise InputError(f"path: {path} does not exist; it must name {expected}.")
    return Path(path)
