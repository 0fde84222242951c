"""Whatever lies at a path: the dataset that `--data.path` names, told by what is found there."""

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

from genjax.data.digits import Digits
from genjax.data.examples import Examples, ImageExample, LabelledImages, Split
from genjax.data.folder import ImageFolder
from genjax.data.idx import Idx
from genjax.data.npz import Npz
from genjax.data.pairs import PairOptions, Pairs
from genjax.data.shards import WebDataset
from genjax.errors import InputError

__all__ = ["Images"]


@dataclass(frozen=True)
class Images(PairOptions):
    """The embedded digits, or what a path holds.

    A `.npz` file is an `Npz`; a `.tar`, a folder of them or a pattern a `WebDataset`; a folder with files in MNIST's
    format an `Idx`; any other folder an `ImageFolder`. What the kind cannot do is refused: a size that its images do
    not have, a field that it lacks.
    """

    path: str | None = field(default=None, metadata={"may_change": True})
    """A folder of images and captions, tar shards, a folder of IDX files, or an .npz; embedded digits when None."""
    image_size: int | None = None
    """Side that image files are fitted to, 64 when None; the digits, .npz and IDX files have a size of their own."""
    channels: int | None = None
    """1 for grey images, 3 for RGB, which None is for image files; the others have channels of their own."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.dataset.image_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, empty where there are none."""
        return self.dataset.class_names

    def source(self, split: Split) -> Examples[ImageExample]:
        """Random access to the examples of a split. Raises InputError as the kind of dataset does."""
        return self.dataset.source(split)

    @cached_property
    def dataset(self) -> LabelledImages:
        """The dataset that was found; one that does not exist is left to `ImageFolder` to refuse.

        Raises `InputError` for a field that would change nothing, and for a size or channels that the images lack.
        """
        kind = self._kind()
        own = {field.name for field in fields(kind)}
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}
        found = kind(**{name: value for name, value in given.items() if name in own})
        if not isinstance(found, Pairs):
            self._refuse_what_is_fixed(found, {name for name in given if name not in own})
        return found

    def _kind(self) -> type[LabelledImages]:
        if self.path is None:
            return Digits
        place = Path(self.path)
        if place.suffix == ".npz":
            return Npz
        if place.is_dir() and any(place.glob("*-idx?-ubyte*")):
            return Idx
        shards = place.suffix == ".tar" or (place.is_dir() and any(place.glob("*.tar")))
        return WebDataset if shards else ImageFolder

    def _refuse_what_is_fixed(self, found: LabelledImages, given: set[str]) -> None:
        """Raise InputError for the fields `given` that the digits, an Npz or an Idx cannot follow."""
        what = "the embedded digits" if self.path is None else self.path
        instead = "; name images of your own with path" if self.path is None else ""
        lacking = sorted(given - {"image_size", "channels"})
        if lacking:
            names = ", ".join(f"{name} = {getattr(self, name)}" for name in lacking)
            raise InputError(
                f"{names} changes nothing of {what}, read as {type(found).__name__}: leave it out{instead}."
            )
        if not given:
            return
        height, width, channels = found.image_shape
        sizes_fit = self.image_size in (None, height) and self.image_size in (None, width)
        if not (sizes_fit and self.channels in (None, channels)):
            asked = ", ".join(f"{name} = {getattr(self, name)}" for name in sorted(given))
            raise InputError(
                f"{asked} was asked for, but the images of {what} are {height}x{width} with {channels}"
                f" channel{'s' * (channels != 1)}, and are not resized{instead}."
            )
