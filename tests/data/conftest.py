"""Small data on disk, made anew for each test."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """The bytes of an image file: `encoded(pixels_or_seed, format="PNG")`."""

    def encode(pixels: np.ndarray | int, format: str = "PNG", **options) -> bytes:
        if isinstance(pixels, int):
            pixels = np.random.default_rng(pixels).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format, **options)
        return file.getvalue()

    return encode


@pytest.fixture
def folder(tmp_path, encoded) -> Path:
    """Six images in two folders, each with the caption `image <i>`."""
    for index in range(6):
        stem = tmp_path / "pairs" / ("a" if index < 3 else "b") / f"{index}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".png").write_bytes(encoded(index))
        stem.with_suffix(".txt").write_text(f"image {index}")
    return tmp_path / "pairs"


@pytest.fixture
def write_tar() -> Callable[[Path, Iterable[tuple[str, bytes]]], Path]:
    def write(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def rows() -> Callable[..., dict]:
    """A transform that keeps the image and numbers the caption by its last word."""

    def transform(example, rng: np.random.Generator) -> dict:
        return {"image": example["image"], "number": int(example["captions"][0].split()[-1]), "draw": rng.random()}

    return transform
