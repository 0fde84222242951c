"""Laws of pictures."""

import numpy as np
import pytest
from PIL import Image

from genjax.runs import pictures


def test_the_ends_and_middle_of_the_range():
    values = np.array([-2.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 5, 1)
    assert pictures.to_uint8(values).ravel().tolist() == [0, 0, 128, 255, 255]


def test_every_grey_level_survives_the_way_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(pictures.to_uint8(levels / 127.5 - 1), levels)


@pytest.mark.parametrize(("number", "columns"), [(1, None), (5, None), (6, 3)])
def test_a_grid_holds_its_images_in_reading_order(number, columns):
    images = np.arange(1, number + 1, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    canvas = pictures.grid(images, columns=columns)
    columns = columns or int(np.ceil(np.sqrt(number)))
    for i in range(number):
        row, column = divmod(i, columns)
        patch = canvas[row * 3 + 1 : row * 3 + 3, column * 4 + 1 : column * 4 + 4]
        assert (patch == i + 1).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels_enlarged_by_a_whole_factor(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, channels)).astype(np.uint8)
    pictures.save_png(image, tmp_path / "x.png", smallest_side=10)
    read = np.asarray(Image.open(tmp_path / "x.png")).reshape(12, 18, channels)
    np.testing.assert_array_equal(read[::3, ::3], image)


def test_a_gif_has_all_frames(tmp_path):
    frames = np.stack([np.full((4, 4, 1), 40 * i, np.uint8) for i in range(6)])
    pictures.save_gif(frames, tmp_path / "x.gif")
    assert Image.open(tmp_path / "x.gif").n_frames == 6
