"""The handwritten digits that come with scikit-learn: real data that needs no download.

1,797 grey images of 8x8 pixels with 17 levels, the test part of the UCI "Optical Recognition of Handwritten Digits"
data (E. Alpaydin and C. Kaynak, 1998).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genjax.data.captions import DIGIT_NAMES, captions_for
from genjax.data.examples import Examples, ImageExample, Split

__all__ = ["Digits"]

TEST_FRACTION = 0.3
SPLIT_RANDOM_STATE = 0
LEVELS = 16


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's 8x8 handwritten digits: 1,257 to train on and 540 to test on, stratified by class."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return (8, 8, 1)

    @property
    def levels(self) -> int:
        """How many values a pixel takes, evenly from -1 to 1."""
        return LEVELS + 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """zero to nine."""
        return DIGIT_NAMES

    def source(self, split: Split) -> Examples[ImageExample]:
        """Random access to the examples of a split."""
        images, labels, rows = self._data
        captions = [captions_for(name) for name in DIGIT_NAMES]

        def read(row: int) -> ImageExample:
            label = int(labels[row])
            return ImageExample(image=images[row], captions=captions[label], label=label)

        return Examples(rows[split], read)

    @cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray, dict[str, list[int]]]:
        # scikit-learn takes a second to import: only those who want the digits wait for it.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = (digits.images[..., None] / (LEVELS / 2) - 1).astype(np.float32)
        images.setflags(write=False)
        train, test = train_test_split(
            np.arange(len(images)),
            test_size=TEST_FRACTION,
            stratify=digits.target,
            random_state=SPLIT_RANDOM_STATE,
        )
        return images, digits.target, {"train": train.tolist(), "test": test.tolist()}
