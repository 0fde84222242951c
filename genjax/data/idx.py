"""IDX files, the format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist).

A big-endian header of 32-bit words, then unsigned bytes. The first word is the magic number: 0, 0, 8 for unsigned
bytes, then the number of dimensions; the sizes of the dimensions follow.
"""

import gzip
import struct
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from genjax.data.captions import DIGIT_NAMES, TEMPLATES, captions_for
from genjax.data.examples import Examples, ImageExample, Split, existing_path
from genjax.data.images import to_unit_range
from genjax.errors import InputError

__all__ = ["Idx", "read_idx"]

PREFIXES = {"train": "train", "test": "t10k"}
# Dimensions of each kind of file, which its name and its magic number repeat.
KINDS = {"images": 3, "labels": 1}
UNSIGNED_BYTES = 0x0800


@dataclass(frozen=True)
class Idx:
    """A folder of the four IDX files of MNIST, Fashion-MNIST or KMNIST, plain or gzipped."""

    path: str | None = field(default=None, metadata={"may_change": True})
    """Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same for t10k, or these with .gz."""
    class_names: tuple[str, ...] = DIGIT_NAMES
    """Name of each label, in order."""
    templates: tuple[str, ...] = TEMPLATES
    """Captions of an image, with {name} for the name of its class."""

    def __post_init__(self):
        if not self.templates:
            raise InputError('templates is empty; expected at least one caption like "a photo of a {name}".')

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image, as the training file says."""
        return (*self._train[0].shape[1:], 1)

    def source(self, split: Split) -> Examples[ImageExample]:
        """Random access to the examples of a split, which the files decide."""
        images, labels = self._train if split == "train" else self._open(split)
        captions = [captions_for(name, self.templates) for name in self.class_names]

        def read(row: int) -> ImageExample:
            label = int(labels[row])
            return ImageExample(image=to_unit_range(images[row, :, :, None]), captions=captions[label], label=label)

        return Examples(range(len(images)), read)

    @cached_property
    def _train(self) -> tuple[np.ndarray, np.ndarray]:
        return self._open("train")

    def _open(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        folder = existing_path(self.path, "a folder of IDX files, as MNIST has them")
        files = {kind: _find(folder, f"{PREFIXES[split]}-{kind}-idx{rank}-ubyte") for kind, rank in KINDS.items()}
        images, labels = (read_idx(files[kind], rank=rank) for kind, rank in KINDS.items())
        if not images.size:
            raise InputError(f"{files['images']}: there are no images in it.")
        if len(images) != len(labels):
            raise InputError(f"{files['labels']}: has {len(labels)} labels for {len(images)} images.")
        if labels.max() >= len(self.class_names):
            raise InputError(
                f"{files['labels']}: has the label {labels.max()}, but class_names has only"
                f" {len(self.class_names)} names."
            )
        return images, labels


def read_idx(file: Path, *, rank: int) -> np.ndarray:
    """The uint8 array of `rank` dimensions in an IDX file, gzipped if its name ends in .gz.

    Raises `InputError` naming the file when the magic number or the length is not what it should be.
    """
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read whole ({error}).") from None
    words = 1 + rank
    if len(data) < 4 * words:
        raise InputError(f"{file}: cut short: {len(data)} bytes, and the header alone has {4 * words}.")
    magic, *shape = struct.unpack_from(f">{words}I", data)
    if magic != UNSIGNED_BYTES + rank:
        raise InputError(f"{file}: the magic number is {magic}; an IDX file of this name has {UNSIGNED_BYTES + rank}.")
    expected = 4 * words + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise InputError(f"{file}: has {len(data)} bytes; its header {'x'.join(map(str, shape))} asks for {expected}.")
    return np.frombuffer(data, np.uint8, offset=4 * words).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    candidates = (folder / name, folder / f"{name}.gz")
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise InputError(f"{folder / name}: does not exist, with or without .gz.")
    return found
