"""Encoded images with text beside them: what a folder of files and the shards of a tar archive have in common."""

import abc
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from genjax.data.captions import parse_captions
from genjax.data.examples import Examples, ImageExample, OnBad, Split, split_items
from genjax.data.images import MODES, decode, random_flip
from genjax.errors import InputError

__all__ = ["Blob", "Pair", "PairOptions", "Pairs"]


class Blob(NamedTuple):
    """Bytes on disk: a whole file, or `size` bytes at `offset` of it (a member of a tar)."""

    file: str
    member: str = ""
    offset: int = 0
    size: int = -1

    @property
    def name(self) -> str:
        """What an error calls it: `file`, or `shard::member`."""
        return f"{self.file}::{self.member}" if self.member else self.file

    def read(self) -> bytes:
        """The bytes, read at their place. Raises `InputError` when they are not there."""
        try:
            with open(self.file, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror or error}).") from None
        if len(data) < self.size:
            raise InputError(f"{self.name}: cut short after {len(data)} of {self.size} bytes.")
        return data


class Pair(NamedTuple):
    """An encoded image and its captions, or the file they are in."""

    image: Blob
    captions: Blob | tuple[str, ...]


@dataclass(frozen=True)
class PairOptions:
    """How images of any size are read: where they are, what they are fitted to, and which are held out."""

    path: str | None = field(default=None, metadata={"may_change": True})
    """Where the data is."""
    image_size: int = 64
    """Side of the images in pixels: the short side is resized to it, the long side cropped at the centre."""
    channels: int = 3
    """1 for grey images, 3 for RGB."""
    flip: bool = False
    """Mirror half of the training images left to right, drawn anew each epoch."""
    on_bad: OnBad = "error"
    """What an image that cannot be used does: stop with an error that names it, or be skipped and counted."""
    test_fraction: float = 0.05
    """Share of the images held out as the test split, always the same ones."""

    def __post_init__(self):
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"image_size is {self.image_size}; it must be 1 or more.")


@dataclass(frozen=True)
class Pairs(PairOptions, abc.ABC):
    """Images of any size with captions, fitted to squares of `image_size`."""

    def __post_init__(self):
        super().__post_init__()
        if self.channels not in MODES:
            raise InputError(f"channels is {self.channels}; it must be 1 or 3.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: the images have captions, and no classes."""
        return ()

    def source(self, split: Split) -> Examples[ImageExample]:
        """Random access to the examples of a split.

        Raises `InputError` when there are no images, or (with `on_bad="error"`) when the index shows a bad one.
        """
        items = split_items(self._index, self.test_fraction, split)
        return Examples(items, self._read, self.on_bad, _flipped if self.flip and split == "train" else None)

    @abc.abstractmethod
    def find(self) -> Iterable[Pair | InputError]:
        """Every image under `path` in a fixed order; one that is known to be bad is told as its error."""

    @cached_property
    def _index(self) -> list[Pair | InputError]:
        items = list(self.find())
        problems = [item for item in items if isinstance(item, InputError)]
        if problems and (self.on_bad == "error" or len(problems) == len(items)):
            raise problems[0]
        if not items:
            raise InputError(f"path: there are no images with captions in {self.path}.")
        return items

    def _read(self, item: Pair | InputError) -> ImageExample:
        if isinstance(item, InputError):
            raise item
        image = decode(item.image.read(), item.image.name, image_size=self.image_size, channels=self.channels)
        captions = item.captions
        if isinstance(captions, Blob):
            captions = parse_captions(captions.read(), captions.name)
        return ImageExample(image=image, captions=captions, label=-1)


def _flipped(example: ImageExample, rng: np.random.Generator) -> ImageExample:
    return ImageExample(image=random_flip(example["image"], rng), captions=example["captions"], label=example["label"])
