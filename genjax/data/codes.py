"""Codes of pictures, as a tokeniser has written them: what second stages learn from, without the first one's work.

    codes.json               which tokeniser (its fingerprint), how many ids, the shape of a code, blocks of each split
    train-00000.npz, ...     of BLOCK places of the data each, those that can be read: codes, labels, captions, and the
                             fingerprint again

A block is written whole or not at all, and is checked as it is read (every array of an archive has a checksum), so that
a writer that was stopped goes on where it was. Blocks of another tokeniser are written anew.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Int, Shaped

from genjax.data.digits import Digits
from genjax.data.examples import Examples, LabelledImages, Split, existing_path, readable
from genjax.errors import InputError

__all__ = ["BLOCK", "CodeExample", "Codes", "write_codes"]

EXPECTED = "a folder that `sample.py --codes True` has written"
INDEX = "codes.json"
BLOCK = 1024
"""Places of the data in a file."""
DAMAGE = (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading a file raises that is missing or not whole."""


class CodeExample(TypedDict):
    """The code of one picture with what is known of it."""

    codes: np.ndarray
    """Ids (h, w) or (h, w, Q) int32, or vectors (h, w, D) float32."""
    captions: tuple[str, ...]
    """Those of the picture."""
    label: int
    """Index into `class_names`, or -1 when the class is unknown."""


@dataclass(frozen=True)
class Codes:
    """The codes that `sample.py --codes True` has written, held in memory whole."""

    path: str | None = field(default=None, metadata={"may_change": True})
    """The folder."""
    of: LabelledImages = Digits()
    """The pictures that they are of: their classes, and what samples are judged by."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the pictures."""
        return self.of.class_names

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(h, w), (h, w, Q) of ids, (h, w, D) of vectors."""
        return tuple(self._index["shape"])

    @property
    def size(self) -> int:
        """Ids are in [0, size); 0 of vectors."""
        return self._index["size"]

    @property
    def fingerprint(self) -> int:
        """Of the tokeniser."""
        return self._index["fingerprint"]

    def source(self, split: Split) -> Examples[CodeExample]:
        """Random access to the examples of a split. Raises InputError where the folder is not whole."""
        codes, labels, captions = self._arrays[split]

        def read(row: int) -> CodeExample:
            return CodeExample(codes=codes[row], captions=tuple(captions[row]), label=int(labels[row]))

        return Examples(range(len(codes)), read)

    @cached_property
    def _index(self) -> dict[str, Any]:
        folder = existing_path(self.path, EXPECTED)
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            missing = {"fingerprint", "size", "shape", "pictures"} - set(index)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: it is not {EXPECTED} ({error}).") from None
        if missing:
            raise InputError(f"{folder}: it is not {EXPECTED} ({INDEX} lacks {', '.join(sorted(missing))}).")
        return index

    @cached_property
    def _arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray, list[list[str]]]]:
        found = {}
        for split, pictures in self._index["pictures"].items():
            blocks = [_read(_block(Path(self.path), split, i), self._index, count) for i, count in enumerate(pictures)]
            codes, labels = (np.concatenate([block[i] for block in blocks]) for i in (0, 1))
            if self.size:
                codes = codes.astype(np.int32)
            if len(labels) and not -1 <= labels.min() <= labels.max() < max(len(self.class_names), 1):
                raise InputError(
                    f"{self.path}: its labels go up to {labels.max()}, and the pictures of `of` have"
                    f" {len(self.class_names)} classes"
                )
            found[split] = codes, labels, [names for block in blocks for names in block[2]]
        return found


def write_codes(
    folder: Path,
    encode: Callable[[Shaped[np.ndarray, "N H W C"]], Shaped[np.ndarray, "N *shape"]],
    data: LabelledImages,
    *,
    fingerprint: int,
    size: int,
    shape: tuple[int, ...],
) -> dict[str, int]:
    """Write the codes of both splits; blocks that are there already, of the same tokeniser, are left as they are.

    `encode` makes codes of pictures, `size` is the number of ids (0 of vectors), `shape` that of a code. Pictures that
    cannot be read are left out. Returns how many pictures of each split there are now.
    """
    kind = np.float32 if not size else np.uint16 if size <= 2**16 else np.int32
    index = {"fingerprint": fingerprint, "size": size, "shape": list(shape), "pictures": {}}
    for split in ("train", "test"):
        source = data.source(split)
        index["pictures"][split] = counts = []
        for number, first in enumerate(range(0, len(source), BLOCK)):
            path, places = _block(folder, split, number), range(first, min(first + BLOCK, len(source)))
            if count := _count(path, index, len(places)):
                counts.append(count)
                continue
            examples = list(readable(source, places))
            counts.append(len(examples))
            codes = encode(np.stack([example["image"] for example in examples])).astype(kind)
            captions = np.array(["\n".join(example["captions"]) for example in examples])
            labels = np.array([example["label"] for example in examples], np.int32)
            marks = {"fingerprint": np.int64(fingerprint), "places": np.int64(len(places))}
            _write(path, codes=codes, labels=labels, captions=captions, **marks)
    temporary = folder / f".{INDEX}.{os.getpid()}"
    temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / INDEX)
    return {split: sum(counts) for split, counts in index["pictures"].items()}


def _block(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.npz"


def _write(path: Path, **arrays: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _count(path: Path, index: dict[str, Any], places: int) -> int:
    """How many pictures a block holds that is whole and of so many places; 0 where it is to be written."""
    try:
        with np.load(path, allow_pickle=False) as file:
            rows, same = len(file["labels"]), int(file["places"]) == places
        _read(path, index, rows)
    except (InputError, *DAMAGE):
        return 0
    return rows if same else 0


def _read(
    path: Path, index: dict[str, Any], rows: int
) -> tuple[Shaped[np.ndarray, "N *shape"], Int[np.ndarray, " N"], list[list[str]]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            codes, labels, captions = (file[name] for name in ("codes", "labels", "captions"))
            fingerprint = int(file["fingerprint"])
    except DAMAGE as error:
        raise InputError(f"{path}: it is missing or not whole ({error}); write the codes again.") from None
    if fingerprint != index["fingerprint"]:
        raise InputError(f"{path}: it is of another tokeniser than the rest of its folder; write the codes again.")
    if codes.shape != (rows, *index["shape"]) or labels.shape != (rows,) or captions.shape != (rows,):
        raise InputError(f"{path}: it holds codes of {codes.shape}, and {(rows, *index['shape'])} should be there.")
    if index["size"] and not codes.max() < index["size"]:
        raise InputError(f"{path}: it holds the id {codes.max()}, and there are {index['size']}.")
    return codes, labels, [name.split("\n") for name in captions.tolist()]
