import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genjax.data import images
from genjax.data.images import decode, decode_whole, random_flip, to_unit_range
from genjax.errors import InputError


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_bytes_map_affinely_onto_the_unit_range():
    values = to_unit_range(np.arange(256, dtype=np.uint8))
    assert values.dtype == np.float32 and values[0] == -1 and values[255] == 1
    np.testing.assert_allclose(np.diff(values), 2 / 255, atol=1e-6)


@pytest.mark.parametrize(("channels", "shape"), [(3, (8, 8, 3)), (1, (8, 8))])
def test_a_lossless_square_of_the_right_size_is_kept_to_the_pixel(encoded, channels, shape):
    pixels = random_pixels(*shape)
    decoded = decode(encoded(pixels), "x.png", image_size=8, channels=channels)
    assert decoded.shape == (8, 8, channels) and decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, to_unit_range(pixels.reshape(8, 8, channels)))


def test_a_whole_image_is_kept_to_the_pixel_whatever_its_shape(encoded):
    for pixels in (random_pixels(5, 9, 3), random_pixels(5, 9)):
        decoded = decode_whole(encoded(pixels), "x.png", channels=3 if pixels.ndim == 3 else 1)
        np.testing.assert_array_equal(decoded, to_unit_range(pixels.reshape(5, 9, -1)))
    with pytest.raises(InputError, match="^x.png: not a whole PNG, JPEG or WebP image"):
        decode_whole(b"no picture", "x.png", channels=3)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_long_side_is_cropped_at_the_centre(encoded, axis):
    square = random_pixels(8, 8, 3)
    margin = np.zeros_like(square)
    long = np.concatenate([margin, square, margin], axis=axis)
    np.testing.assert_array_equal(decode(encoded(long), "x.png", image_size=8, channels=3), to_unit_range(square))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(0, 255))
def test_a_flat_image_of_any_shape_keeps_its_colour(height, width, size, level):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(file, "PNG")
    decoded = decode(file.getvalue(), "x.png", image_size=size, channels=3)
    np.testing.assert_array_equal(decoded, np.full((size, size, 3), to_unit_range(np.uint8(level))))


def test_shrinking_averages_instead_of_picking_pixels(encoded):
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    decoded = decode(encoded(checkers), "x.png", image_size=8, channels=1)
    np.testing.assert_allclose(decoded, 0, atol=0.02)


def test_a_very_long_image_does_not_grow_on_the_way(encoded):
    assert decode(encoded(np.zeros((1, 20_000), np.uint8)), "x.png", image_size=256, channels=1).shape == (256, 256, 1)


def test_what_is_transparent_is_white(encoded):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:, 3] = 255
    decoded = decode(encoded(pixels), "x.png", image_size=8, channels=3)
    assert (decoded[:, :4] == 1).all() and (decoded[:, 4:] == -1).all()


def test_sixteen_bit_grey_is_scaled_to_eight(encoded):
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    decoded = decode(encoded(ramp), "x.png", image_size=8, channels=1)
    np.testing.assert_array_equal(decoded[..., 0], to_unit_range((ramp >> 8).astype(np.uint8)))


def test_the_exif_orientation_is_applied(encoded):
    pixels = random_pixels(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half a circle
    decoded = decode(encoded(pixels, exif=exif.tobytes()), "x.png", image_size=8, channels=3)
    np.testing.assert_array_equal(decoded, to_unit_range(pixels[::-1, ::-1]))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused_by_name(encoded, format, kept):
    data = encoded(random_pixels(32, 32, 3), format)
    with pytest.raises(InputError, match=r"^here/x: not a whole .* image"):
        decode(data[: int(kept * len(data))], "here/x", image_size=8, channels=3)


def test_a_corrupt_image_and_one_of_another_format_are_refused_by_name(encoded):
    data = bytearray(encoded(random_pixels(32, 32, 3)))
    data[len(data) // 2] ^= 0xFF
    for bad in (bytes(data), b"no image at all", encoded(random_pixels(8, 8, 3), "BMP")):
        with pytest.raises(InputError, match=r"^here/x\.png: not a whole"):
            decode(bad, "here/x.png", image_size=8, channels=3)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(encoded, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(InputError, match=r"^here/x\.png: .*8x8 is more than 63 pixels"):
        decode(encoded(0), "here/x.png", image_size=8, channels=3)


def test_a_flip_mirrors_about_half_of_the_images():
    image = random_pixels(4, 4, 3)
    flipped = [random_flip(image, np.random.default_rng(seed)) for seed in range(100)]
    mirrored = sum(np.array_equal(one, image[:, ::-1]) for one in flipped)
    assert 30 < mirrored < 70 and mirrored + sum(np.array_equal(one, image) for one in flipped) == 100
