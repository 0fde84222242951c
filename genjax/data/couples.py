"""Images that a trained system has drawn, each with the noise it was drawn from: what reflow learns from."""

import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from genjax.data.captions import captions_for
from genjax.data.digits import Digits
from genjax.data.examples import Examples, ImageExample, LabelledImages, Split, existing_path, split_items
from genjax.errors import InputError

__all__ = ["CoupleExample", "Couples"]

EXPECTED = "a couples.npz that `sample.py --couples True` has written"
NAMES = ("images", "noise", "labels")


class CoupleExample(ImageExample):
    """An image, what is known of it, and the noise it was drawn from."""

    noise: np.ndarray
    """float32 (H, W, C), of unit variance."""


@dataclass(frozen=True)
class Couples:
    """The couples.npz of `sample.py --couples True`, held in memory whole.

    `images` and `noise` are float32 (N, H, W, C), `labels` (N,) integers, -1 where nothing was asked for.
    """

    path: str | None = field(default=None, metadata={"may_change": True})
    """The .npz file."""
    of: LabelledImages = Digits()
    """The real images that the system had learned from: its classes, and what samples are judged by."""
    test_fraction: float = 0.05
    """Share of the couples held out as the test split, always the same ones."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image: that of the real ones."""
        return self.of.image_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the real images."""
        return self.of.class_names

    def source(self, split: Split) -> Examples[CoupleExample]:
        """Random access to the examples of a split."""
        images, noise, labels = (self._arrays[name] for name in NAMES)
        names = self.class_names

        def read(row: int) -> CoupleExample:
            label = int(labels[row])
            captions = captions_for(names[label]) if label >= 0 else ("",)
            return CoupleExample(image=images[row], noise=noise[row], captions=captions, label=label)

        return Examples(split_items(range(len(images)), self.test_fraction, split), read)

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        path = existing_path(self.path, EXPECTED)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in NAMES}
        except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{self.path}: it is not {EXPECTED} ({error}).") from None
        images, noise, labels = (arrays[name] for name in NAMES)
        if images.shape[1:] != self.image_shape or images.shape != noise.shape or labels.shape != images.shape[:1]:
            shape = ", ".join(map(str, self.image_shape))
            raise InputError(
                f"{self.path}: images and noise are of one shape (N, {shape}), with a label for each, not"
                f" {images.shape}, {noise.shape} and {labels.shape}."
            )
        if not (np.isfinite(images).all() and np.isfinite(noise).all()):
            raise InputError(f"{self.path}: images or noise have values that are not finite.")
        if labels.size and not -1 <= labels.min() <= labels.max() < len(self.class_names):
            raise InputError(f"{self.path}: labels are those of {len(self.class_names)} classes, or -1.")
        for array in arrays.values():
            array.setflags(write=False)
        return arrays
