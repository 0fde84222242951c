"""Pictures of samples: float images in [-1, 1] to PNG files, grids and animations."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

__all__ = ["grid", "save_gif", "save_png", "to_uint8"]


def to_uint8(images: Float[np.ndarray, "*batch H W C"]) -> UInt8[np.ndarray, "*batch H W C"]:
    """[-1, 1] to 0..255, rounded; values outside are clipped."""
    return np.rint((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(images: UInt8[np.ndarray, "N H W C"], *, columns: int | None = None) -> UInt8[np.ndarray, "R S C"]:
    """The images in reading order, on `columns` columns (a square by default), one dark pixel apart."""
    number, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 32, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return canvas


def save_png(image: UInt8[np.ndarray, "H W C"], path: Path, *, smallest_side: int = 0) -> None:
    """A PNG of the first 1 or 3 channels, enlarged by a whole factor until its shorter side has `smallest_side`."""
    _picture(image, smallest_side).save(path)


def save_gif(
    frames: UInt8[np.ndarray, "F H W C"], path: Path, *, smallest_side: int = 0, milliseconds: int = 80
) -> None:
    """An endless animation that rests on its last frame for a second."""
    first, *rest = (_picture(frame, smallest_side) for frame in frames)
    durations = [milliseconds] * len(rest) + [1000]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)


def _picture(image: np.ndarray, smallest_side: int) -> Image.Image:
    factor = max(1, math.ceil(smallest_side / min(image.shape[:2])))
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
    return Image.fromarray(image.repeat(factor, 0).repeat(factor, 1))
