"""One .npz file of arrays: images or latents that somebody prepared, with their captions."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from genjax.data.examples import Examples, ImageExample, Split, existing_path, split_items
from genjax.data.images import to_unit_range
from genjax.errors import InputError

__all__ = ["Npz"]

EXPECTED = "an .npz file with the arrays images and captions"
NAMES = ("images", "captions", "labels")


@dataclass(frozen=True)
class Npz:
    """An .npz file, held in memory whole.

    `images` is (N, H, W, C): uint8 pixels 0..255, or float32 that is passed on as it is (pixels in [-1, 1], or latents
    of any scale). `captions` is (N,) of strings; `labels`, if there, is (N,) of integers, -1 where unknown.
    """

    path: str | None = field(default=None, metadata={"may_change": True})
    """The .npz file."""
    class_names: tuple[str, ...] = ()
    """Name of each label, in order, if the file has labels with names."""
    test_fraction: float = 0.05
    """Share of the images held out as the test split, always the same ones."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self._arrays["images"].shape[1:]

    @property
    def levels(self) -> int | None:
        """How many values a pixel takes, evenly from -1 to 1; None where they are numbers of any kind."""
        return 256 if self._arrays["images"].dtype == np.uint8 else None

    def source(self, split: Split) -> Examples[ImageExample]:
        """Random access to the examples of a split."""
        images, captions, labels = (self._arrays[name] for name in ("images", "captions", "labels"))

        def read(row: int) -> ImageExample:
            image = to_unit_range(images[row]) if images.dtype == np.uint8 else images[row]
            return ImageExample(image=image, captions=(str(captions[row]),), label=int(labels[row]))

        return Examples(split_items(range(len(images)), self.test_fraction, split), read)

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = _load(str(existing_path(self.path, EXPECTED)))
        for holds, sentence in _laws(arrays, len(self.class_names)):
            if not holds:
                raise InputError(f"{self.path}: {sentence}.")
        arrays.setdefault("labels", np.full(len(arrays["images"]), -1))
        arrays["images"].setflags(write=False)
        return arrays


def _load(path: str) -> dict[str, np.ndarray]:
    """The arrays of the file. Pickled objects are never loaded."""
    try:
        with open(path, "rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it is a single .npy array")
            return {name: arrays[name] for name in NAMES if name in arrays}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a whole .npz file of plain arrays ({error}).") from None


def _laws(arrays: dict[str, np.ndarray], names: int) -> Iterator[tuple[bool, str]]:
    """What must hold, and what to say when it does not; each rests on those before it."""
    for name in ("images", "captions"):
        yield name in arrays, f"has no array {name}; expected {EXPECTED}"
    images, captions = arrays["images"], arrays["captions"]
    rows = len(images) if images.ndim else 0
    yield (
        images.ndim == 4 and images.dtype in (np.uint8, np.float32),
        f"images is {images.dtype} {images.shape}; expected uint8 or float32 (N, H, W, C)",
    )
    yield images.size > 0, f"images is empty, {images.shape}"
    yield images.dtype == np.uint8 or bool(np.isfinite(images).all()), "images has values that are not finite"
    yield (
        captions.dtype.kind == "U" and captions.shape == (rows,),
        f"captions is {captions.dtype} {captions.shape}; expected ({rows},) strings",
    )
    if "labels" in arrays:
        labels = arrays["labels"]
        yield (
            labels.dtype.kind in "iu" and labels.shape == (rows,),
            f"labels is {labels.dtype} {labels.shape}; expected ({rows},) integers",
        )
        low, high = int(labels.min()), int(labels.max())
        yield low >= -1, f"labels has {low}; expected indices, or -1 where unknown"
        yield not names or high < names, f"labels has {high}, but class_names has only {names} names"
