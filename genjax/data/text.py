"""Documents of bytes, packed into rows of equal length for language models.

The documents of a split stand in one stream, each between two borders (see `ByteTokenizer`), which is cut into rows

    row i = stream[i (L - 1) : i (L - 1) + L]

which overlap by one token: the last of a row is the first of the next. Of L tokens a row predicts L - 1, and each byte
of the split and each end is predicted exactly once. No token of a row is padding, but for the last row.

Without a path it is real text that everybody has: the source of the Python standard library. It depends on the version
of Python a little, which a figure measured on it should name.
"""

import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

import numpy as np

from genjax.data.byte_tokenizer import ByteTokenizer
from genjax.data.examples import Dataset, Examples, Split, existing_path
from genjax.errors import InputError

__all__ = ["PADDING", "Document", "Packed", "Text", "Texts"]

EXPECTED = "a text file, a folder of them, or a .jsonl file"
PADDING = -1
"""Segment of tokens that belong to no document."""
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "encodings"}
"""Folders beside the standard library, its tests, and tables that a program wrote."""


class Packed(TypedDict):
    """One row of tokens."""

    tokens: np.ndarray
    """Ids (length,) int32."""
    segments: np.ndarray
    """Which document of the row each token is of, from 0, (length,) int32; -1 for padding."""


class Texts(Dataset[Packed], Protocol):
    """A dataset of rows of tokens that can be turned into text, and their text as bytes."""

    @property
    def tokenizer(self) -> ByteTokenizer:
        """What the ids mean."""

    def held_out_bytes(self) -> bytes:
        """The text of the test split in one piece: what compressors are compared on."""


class Document(NamedTuple):
    """A text, and the name by which its split is decided."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Text:
    """Bytes of a file, of all texts below a folder, or of JSON lines; held in memory whole.

    A document is a file, or the field "text" of a line of a `.jsonl` file. Which documents are held out follows from a
    hash of their names (of the text itself for JSON lines; of the module for the standard library), so that more data
    moves no document from one split to the other. A single file is cut instead: its end is held out.
    """

    path: str | None = field(default=None, metadata={"may_change": True})
    """A text file, a folder of them, or a .jsonl file; the source of Python's standard library when None."""
    length: int = 256
    """Tokens of a row."""
    suffixes: tuple[str, ...] = (".txt", ".md", ".rst", ".py")
    """Which files of a folder are read."""
    test_fraction: float = 0.1
    """Share of the documents held out as the test split, always the same ones."""

    def __post_init__(self):
        if self.length < 2:
            raise InputError(f"length is {self.length}; a row that predicts a token has at least 2.")
        if not 0 < self.test_fraction < 1:
            raise InputError(f"test_fraction is {self.test_fraction}; it must be above 0 and below 1.")

    @property
    def tokenizer(self) -> ByteTokenizer:
        """What the ids mean."""
        return ByteTokenizer()

    def source(self, split: Split) -> Examples[Packed]:
        """Random access to the rows of a split.

        Raises InputError where the path is missing, or holds nothing to read or to hold out.
        """
        stream, starts = self._streams[split]
        step = self.length - 1

        def read(row: int) -> Packed:
            tokens = stream[row * step : row * step + self.length]
            # The documents that have begun by each token; of them those of this row count from 0.
            begun = np.searchsorted(starts, np.arange(row * step, row * step + len(tokens)), side="right")
            pad = (0, self.length - len(tokens))
            return Packed(
                tokens=np.pad(tokens.astype(np.int32), pad, constant_values=self.tokenizer.border),
                segments=np.pad((begun - begun[0]).astype(np.int32), pad, constant_values=PADDING),
            )

        return Examples(range(max(1, -(-(len(stream) - 1) // step))), read)

    def held_out_bytes(self) -> bytes:
        """The documents of the test split in one piece: what compressors are compared on. Raises as `source`."""
        return b"".join(self._splits["test"])

    @cached_property
    def _streams(self) -> dict[Split, tuple[np.ndarray, np.ndarray]]:
        """(the tokens, where documents start) of each split."""
        streams = {}
        for split, documents in self._splits.items():
            parts = [self.tokenizer.document(data).astype(np.uint16) for data in documents]
            starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
            streams[split] = np.concatenate(parts), starts
            streams[split][0].setflags(write=False)
        return streams

    @cached_property
    def _splits(self) -> dict[Split, list[bytes]]:
        if self.path is None:
            documents = list(_standard_library())
        else:
            path = existing_path(self.path, EXPECTED)
            if path.is_file() and path.suffix != ".jsonl":
                return _cut(path, self.test_fraction)
            documents = list(_json_lines(path) if path.is_file() else _folder(path, self.suffixes))
        return _held_out(documents, self.test_fraction, self.path or "Python's standard library")


def _held_out(documents: list[Document], fraction: float, where: str) -> dict[Split, list[bytes]]:
    """Documents whose name has a hash below `fraction` are held out; at least one is, and at least one is not."""
    documents = [document for document in documents if document.data]
    names = sorted({document.name for document in documents}, key=_hash)
    if len(names) < 2:
        raise InputError(
            f"path: {where} has {len(names)} documents with text in them; at least two are needed, one of them to "
            "hold out."
        )
    count = sum(_hash(name) < fraction for name in names)
    test = set(names[: min(max(1, count), len(names) - 1)])
    return {
        "train": [document.data for document in documents if document.name not in test],
        "test": [document.data for document in documents if document.name in test],
    }


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, in every process and version."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:6], "big") / 2**48


def _cut(path: Path, fraction: float) -> dict[Split, list[bytes]]:
    data = _read(path)
    at = len(data) - max(1, round(fraction * len(data)))
    if at < 1:
        raise InputError(f"path: {path} has {len(data)} bytes; at least two are needed, one of them to hold out.")
    return {"train": [data[:at]], "test": [data[at:]]}


def _folder(root: Path, suffixes: tuple[str, ...]) -> Iterator[Document]:
    paths = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in suffixes and path.is_file()]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    if not paths:
        raise InputError(f"path: {root} has no file that ends in {', '.join(suffixes)} (suffixes).")
    return _documents(root, paths, name=lambda inside: inside.as_posix())


def _standard_library() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    inside = [path.relative_to(root) for path in root.rglob("*.py")]
    # _sysconfigdata is written anew for each machine.
    kept = [path for path in inside if not NOT_LIBRARY & set(path.parts) and not path.name.startswith("_sysconfigdata")]
    # A package is held out whole: its files resemble each other.
    paths = sorted((root / path for path in kept), key=lambda path: path.relative_to(root).parts)
    return _documents(root, paths, name=lambda inside: inside.parts[0].removesuffix(".py"))


def _documents(root: Path, paths: list[Path], name: Callable[[Path], str]) -> Iterator[Document]:
    return (Document(name(path.relative_to(root)), _read(path)) for path in paths)


def _json_lines(path: Path) -> Iterator[Document]:
    for number, line in enumerate(_read(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise InputError(f"{where}: not UTF-8 text.") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON ({error}).") from None
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise InputError(f'{where}: expected a JSON object with a string under "text".')
        yield Document(text, text.encode(errors="surrogatepass"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
