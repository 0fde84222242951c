import gzip
import struct

import numpy as np
import pytest

from genjax.data import DIGIT_NAMES, Idx
from genjax.errors import InputError


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    header = (0x0800 + array.ndim if magic is None else magic, *array.shape)
    return struct.pack(f">{len(header)}I", *header) + array.astype(np.uint8).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 9, 4, 5])


@pytest.fixture(params=["", ".gz"])
def mnist(request, tmp_path):
    pack = gzip.compress if request.param else bytes
    for split, rows in [("train", slice(0, 4)), ("t10k", slice(4, 6))]:
        (tmp_path / f"{split}-images-idx3-ubyte{request.param}").write_bytes(pack(idx(IMAGES[rows])))
        (tmp_path / f"{split}-labels-idx1-ubyte{request.param}").write_bytes(pack(idx(LABELS[rows])))
    return tmp_path


def test_files_give_back_the_pixels_and_labels_that_were_written(mnist):
    data = Idx(str(mnist))
    examples = [*data.source("train"), *data.source("test")]
    assert data.image_shape == (4, 5, 1) and len(data.source("test")) == 2
    np.testing.assert_allclose([(e["image"][..., 0] + 1) * 127.5 for e in examples], IMAGES, atol=1e-4)
    assert [e["label"] for e in examples] == LABELS.tolist()
    assert [e["captions"][0] for e in examples] == [f"a handwritten {DIGIT_NAMES[label]}" for label in LABELS]


def test_names_and_templates_make_the_captions(mnist):
    data = Idx(str(mnist), class_names=tuple("abcdefghij"), templates=("a photo of {name}",))
    assert data.source("test")[0]["captions"] == ("a photo of e",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images-idx3", idx(IMAGES[:4], magic=2049), "the magic number is 2049; .* has 2051"),
        ("labels-idx1", idx(LABELS[:4], magic=2051), "the magic number is 2051; .* has 2049"),
        ("images-idx3", idx(IMAGES[:4])[:-1], "has 95 bytes; its header 4x4x5 asks for 96"),
        ("images-idx3", idx(IMAGES[:4]) + b"x", "has 97 bytes"),
        ("images-idx3", idx(IMAGES[:4])[:10], "cut short: 10 bytes, and the header alone has 16"),
        ("images-idx3", idx(IMAGES[:0]), "there are no images"),
        ("labels-idx1", idx(LABELS[:3]), "has 3 labels for 4 images"),
        ("labels-idx1", idx(np.array([0, 1, 2, 10])), r"has the label 10, but class_names has only 10 names"),
        ("labels-idx1", None, "does not exist, with or without .gz"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, name, content, message):
    files = {"images-idx3": idx(IMAGES[:4]), "labels-idx1": idx(LABELS[:4])} | {name: content}
    for kind, data in files.items():
        if data is not None:
            (tmp_path / f"train-{kind}-ubyte").write_bytes(data)
    with pytest.raises(InputError, match=f"train-{name}-ubyte: {message}"):
        Idx(str(tmp_path)).source("train")


def test_a_cut_gzip_is_refused_by_name(tmp_path):
    for content in (gzip.compress(idx(IMAGES))[:-20], b"no gzip"):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
        with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: cannot be read whole"):
            Idx(str(tmp_path)).source("train")


def test_what_is_not_set_is_refused(mnist):
    with pytest.raises(InputError, match="^path is not set"):
        Idx().source("train")
    with pytest.raises(InputError, match="^templates is empty"):
        Idx(str(mnist), templates=())
