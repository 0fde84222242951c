"""Tar shards in the WebDataset layout: `key.png` followed by `key.txt` or `key.json`, for each example.

A shard is read once from header to header when it is opened; the bytes of a member are then read at their offset, in
any order. An uncompressed tar ends with blocks of zeros, so a shard cut anywhere is known by what stands at its end.
"""

import glob
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from genjax.data.captions import PARSERS
from genjax.data.examples import existing_path
from genjax.data.images import SUFFIXES
from genjax.data.pairs import Blob, Pair, Pairs
from genjax.errors import InputError

__all__ = ["WebDataset"]

EXPECTED = "a .tar shard, a folder of them, or a pattern like shards/*.tar"


@dataclass(frozen=True)
class WebDataset(Pairs):
    """Tar shards of PNG, JPEG or WebP images with captions.

    `path` is one .tar, a folder of them, or a glob pattern. The members `key.png` and `key.txt` (a caption on each
    line) or `key.json` (with "caption" or "text") make one example; other members are left alone.
    """

    def find(self) -> Iterator[Pair | InputError]:
        """Every image of every shard, in the order of the shards' names and of their members."""
        for shard in _shards(self.path):
            yield from _pairs(shard, _members(shard))


def _shards(path: str | None) -> list[str]:
    if path is not None and set(path) & set("*?[") and not Path(path).exists():
        shards = sorted(glob.glob(path, recursive=True))
    else:
        place = existing_path(path, EXPECTED)
        shards = sorted(map(str, place.glob("*.tar"))) if place.is_dir() else [str(place)]
    if not shards:
        raise InputError(f"path: {path} has no .tar shards; it must name {EXPECTED}.")
    return shards


def _members(shard: str) -> list[Blob]:
    """The files in a shard. Raises `InputError` naming the shard when it is not a whole, uncompressed tar."""
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = [Blob(shard, m.name, m.offset_data, m.size) for m in tar if m.isreg() and not m.issparse()]
            file.seek(tar.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"{shard}: not a whole, uncompressed tar ({error}).") from None
    if end != bytes(tarfile.BLOCKSIZE):
        raise InputError(f"{shard}: the tar is cut short or corrupt after {len(members)} members: it has no end mark.")
    return members


def _pairs(shard: str, members: list[Blob]) -> Iterator[Pair | InputError]:
    examples: dict[str, dict[str, list[Blob]]] = {}
    for member in members:
        path = PurePosixPath(member.member)
        stem, _, suffix = path.name.partition(".")
        kind = f".{suffix.lower()}"
        if stem and kind in ROLES:
            roles = examples.setdefault(str(path.parent / stem), {"image": [], "caption": []})
            roles[ROLES[kind]].append(member)
    for key, roles in examples.items():
        images, captions = (
            roles["image"],
            sorted(roles["caption"], key=lambda blob: not blob.member.lower().endswith(".txt")),
        )
        if len(images) == 1 and captions:
            yield Pair(images[0], captions[0])
        else:
            yield InputError(
                f"{shard}::{key}: has {len(images)} images and {len(captions)} captions; expected one image"
                f" ({', '.join(SUFFIXES)}) and one caption ({', '.join(PARSERS)})."
            )


# What a member is for, by everything after the first dot of its name.
ROLES = dict.fromkeys(SUFFIXES, "image") | dict.fromkeys(PARSERS, "caption")
