import pickle

import numpy as np
import pytest

from genjax.data import Npz
from genjax.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
LATENTS = np.random.default_rng(0).normal(0, 3, (5, 2, 2, 16)).astype(np.float32)
CAPTIONS = np.array([f"image {index}" for index in range(5)])


def dataset(path, **arrays):
    np.savez(path, **arrays)
    return Npz(str(path), test_fraction=0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.npz"


def test_floats_pass_through_to_the_bit(path):
    data = dataset(path, images=LATENTS, captions=CAPTIONS)
    np.testing.assert_array_equal([e["image"] for e in data.source("train")], LATENTS)
    assert data.image_shape == (2, 2, 16)


def test_bytes_are_scaled_to_the_unit_range(path):
    data = dataset(path, images=PIXELS, captions=CAPTIONS)
    images = np.stack([e["image"] for e in data.source("train")])
    assert images.dtype == np.float32
    np.testing.assert_allclose((images + 1) * 127.5, PIXELS, atol=1e-4)


def test_captions_and_labels_go_with_their_image(path):
    examples = list(dataset(path, images=PIXELS, captions=CAPTIONS, labels=np.arange(5)).source("train"))
    assert [(e["captions"], e["label"]) for e in examples] == [((f"image {i}",), i) for i in range(5)]
    assert {e["label"] for e in dataset(path, images=PIXELS, captions=CAPTIONS).source("train")} == {-1}


def test_an_example_cannot_be_written_to(path):
    with pytest.raises(ValueError, match="read-only"):
        dataset(path, images=LATENTS, captions=CAPTIONS).source("train")[0]["image"] += 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "has no array images"),
        ({"captions": None}, "has no array captions"),
        ({"images": PIXELS[..., 0]}, "images is uint8 .*; expected uint8 or float32"),
        ({"images": PIXELS.astype(np.float64)}, "images is float64"),
        ({"images": PIXELS[:0], "captions": CAPTIONS[:0]}, "images is empty"),
        ({"images": np.where(LATENTS > 3, np.nan, LATENTS)}, "images has values that are not finite"),
        ({"captions": CAPTIONS[:4]}, r"captions is <U7 \(4,\); expected \(5,\) strings"),
        ({"captions": np.arange(5)}, "captions is int64"),
        ({"captions": CAPTIONS.astype(object)}, "Object arrays cannot be loaded"),
        ({"labels": np.arange(4)}, r"labels is int64 \(4,\)"),
        ({"labels": np.arange(5) - 2}, "labels has -2"),
    ],
)
def test_a_bad_array_is_refused_by_name(path, changes, message):
    arrays = {"images": PIXELS, "captions": CAPTIONS} | changes
    data = dataset(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=rf"data\.npz: .*{message}"):
        data.source("train")


def test_labels_beyond_the_names_are_refused(path):
    np.savez(path, images=PIXELS, captions=CAPTIONS, labels=np.arange(5))
    with pytest.raises(InputError, match=r"labels has 4, but class_names has only 3 names"):
        Npz(str(path), class_names=("a", "b", "c")).source("train")


def test_a_file_that_is_no_npz_is_refused_by_name_and_no_pickle_is_run(path):
    np.savez(path, images=PIXELS, captions=CAPTIONS)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2], pickle.dumps(Bomb()), b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"data\.npz: not a whole \.npz file"):
            Npz(str(path)).source("train")
    np.save(path.with_suffix(".npy"), PIXELS)
    with pytest.raises(InputError, match=r"data\.npy: .*single \.npy array"):
        Npz(str(path.with_suffix(".npy"))).source("train")


def test_a_path_that_is_not_set_or_not_there_is_refused(path):
    for place, message in [(None, "^path is not set"), (str(path), "does not exist")]:
        with pytest.raises(InputError, match=message):
            Npz(place).source("train")


class Bomb:
    def __reduce__(self):
        return (SystemExit, ("a pickle was run",))
