"""Images: from the bytes of a file to a float array (H, W, C) in [-1, 1].

A file is decoded to its last pixel before anything of it is used, so a truncated one is found here and nowhere later.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from genjax.errors import InputError

__all__ = ["MODES", "SUFFIXES", "decode", "decode_whole", "random_flip", "to_unit_range"]

# The file name suffixes taken for images, and the Pillow decoders that may open them.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
MODES = {1: "L", 3: "RGB"}
MAX_PIXELS = 2**26


def decode(data: bytes, name: str, *, image_size: int, channels: int) -> np.ndarray:
    """Decode an image file and fit it to a square.

    The EXIF orientation is applied, transparency is composited on white, the largest centred square is cut out and
    resized with antialiasing: the short side fits, and what the long side has beyond it is cropped.

    Args:
        data: the bytes of a PNG, JPEG or WebP file.
        name: what an error calls it.
        image_size: side of the result, in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        float32 (image_size, image_size, channels) in [-1, 1].

    Raises:
        InputError: the bytes are not such an image, are cut short or corrupt, or hold more than `MAX_PIXELS` pixels.
    """
    pixels = _pixels(data, name, channels, lambda image: _square(image, image_size))
    return to_unit_range(pixels.reshape(image_size, image_size, channels))


def decode_whole(data: bytes, name: str, *, channels: int) -> np.ndarray:
    """All of an image file, float32 (H, W, channels) in [-1, 1]: `decode` without fitting it to a square."""
    pixels = _pixels(data, name, channels, lambda image: image)
    return to_unit_range(pixels.reshape(*pixels.shape[:2], channels))


def _pixels(data: bytes, name: str, channels: int, fit: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
            image.load()
            return np.asarray(fit(_flattened(ImageOps.exif_transpose(image)).convert(MODES[channels])))
    except Exception as error:  # Pillow has no common exception: corrupt files end in a dozen different ones.
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{name}: not a whole PNG, JPEG or WebP image ({reason}).") from None


def to_unit_range(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels 0..255 to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror an image (H, W, C) left to right with probability one half."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def _flattened(image: Image.Image) -> Image.Image:
    """The image without transparency (white shows through) and in 8 bits."""
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255 instead of scaling it.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square, resized. Cropping first keeps a very long image from growing on the way."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
