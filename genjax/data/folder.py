"""A folder of images with captions: `x.png` beside `x.txt`, or one `metadata.jsonl` for all."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from genjax.data.captions import captions_of_record
from genjax.data.examples import existing_path
from genjax.data.images import SUFFIXES
from genjax.data.pairs import Blob, Pair, Pairs
from genjax.errors import InputError

__all__ = ["ImageFolder"]

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class ImageFolder(Pairs):
    """A folder of PNG, JPEG or WebP images, searched recursively.

    The captions of `x.png` are the lines of `x.txt`. A `metadata.jsonl` in the folder replaces both the search and the
    text files: each of its lines has `file_name` (relative to the folder) and `text` (a string or a list of them).
    """

    def find(self) -> Iterator[Pair | InputError]:
        """Every image of the folder, by name or in the order of `metadata.jsonl`."""
        root = existing_path(self.path, "a folder of images with captions")
        if not root.is_dir():
            raise InputError(f"path: {root} is not a folder.")
        metadata = root / METADATA
        return _from_metadata(root, metadata) if metadata.is_file() else _from_files(root)


def _from_files(root: Path) -> Iterator[Pair | InputError]:
    files = {path for path in root.rglob("*") if not path.name.startswith(".")}
    for path in sorted(files):
        if path.suffix.lower() not in SUFFIXES:
            continue
        caption = path.with_suffix(".txt")
        if caption in files:
            yield Pair(Blob(str(path)), Blob(str(caption)))
        else:
            yield InputError(f"{caption}: missing; {path.name} needs a caption there, or a line in {METADATA}.")


def _from_metadata(root: Path, metadata: Path) -> Iterator[Pair | InputError]:
    with open(metadata, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _from_line(root, line, f"{metadata}, line {number}")


def _from_line(root: Path, line: bytes, where: str) -> Pair | InputError:
    try:
        record, captions = captions_of_record(line.decode("utf-8-sig"), where, fields=("text",))
    except UnicodeDecodeError:
        return InputError(f"{where}: not UTF-8 text.")
    except InputError as error:
        return error
    name = record.get("file_name")
    if not isinstance(name, str) or not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        return InputError(f'{where}: "file_name" must be the path of an image relative to {root}.')
    if not (root / name).is_file():
        return InputError(f"{where}: {root / name} does not exist.")
    return Pair(Blob(str(root / name)), captions)
