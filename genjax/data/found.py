"""Whatever lies at a path: the dataset that `--data.path` names, told by what is found there."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from genjax.data.digits import Digits
from genjax.data.examples import Dataset, Examples, Split
from genjax.data.folder import ImageFolder
from genjax.data.idx import Idx
from genjax.data.npz import Npz
from genjax.data.pairs import PairOptions
from genjax.data.shards import WebDataset


@dataclass(frozen=True)
class Images(PairOptions):
    """The embedded digits, or what a path holds.

    A `.npz` file is an `Npz`; a `.tar`, a folder of them or a pattern a `WebDataset`; a folder with files in MNIST's
    format an `Idx`; any other folder an `ImageFolder`. Fields that the kind does not have are left alone.
    """

    path: str | None = None
    """A folder of images and captions, tar shards, a folder of IDX files, or an .npz; embedded digits when None."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.dataset.image_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, empty where there are none."""
        return self.dataset.class_names

    def source(self, split: Split) -> Examples:
        """Random access to the examples of a split. Raises InputError as the kind of dataset does."""
        return self.dataset.source(split)

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that was found; one that does not exist is left to `ImageFolder` to refuse."""
        if self.path is None:
            return Digits()
        place = Path(self.path)
        if place.suffix == ".npz":
            return Npz(self.path, test_fraction=self.test_fraction)
        if place.is_dir() and any(place.glob("*-idx?-ubyte*")):
            return Idx(self.path)
        shards = place.suffix == ".tar" or (place.is_dir() and any(place.glob("*.tar")))
        kind = WebDataset if shards else ImageFolder
        return kind(**{field.name: getattr(self, field.name) for field in fields(self)})
