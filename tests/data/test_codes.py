"""Laws of codes on disk: each is there with what is known of it, a stopped writer goes on, others are refused."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from genjax.data import Codes, Digits, Examples
from genjax.data.codes import write_codes
from genjax.errors import InputError

SHAPE = (2, 2)


def encode(images):
    """Four pixels of each picture, as ids below 17."""
    return np.rint((images[:, 2:4, 2:4, 0] + 1) * 8).astype(np.int32)


def written(folder, fingerprint=7, encode=encode):
    counts = write_codes(folder, encode, Digits(), fingerprint=fingerprint, size=17, shape=SHAPE)
    return counts, Codes(path=str(folder))


def test_every_picture_has_its_code_its_label_and_its_captions(tmp_path):
    counts, data = written(tmp_path)
    assert counts == {"train": 1257, "test": 540}
    assert (data.code_shape, data.size, data.fingerprint, data.class_names) == (SHAPE, 17, 7, Digits().class_names)
    for split in ("train", "test"):
        source, pictures = data.source(split), Digits().source(split)
        assert len(source) == len(pictures)
        for i in range(len(source)):
            found, picture = source[i], pictures[i]
            np.testing.assert_array_equal(found["codes"], encode(picture["image"][None])[0])
            assert found["codes"].dtype == np.int32
            assert (found["label"], found["captions"]) == (picture["label"], picture["captions"])


def test_vectors_are_kept_as_they_are(tmp_path):
    def vectors(images):
        return images[:, :2, :2]

    write_codes(tmp_path, vectors, Digits(), fingerprint=1, size=0, shape=(2, 2, 1))
    data = Codes(path=str(tmp_path))
    np.testing.assert_array_equal(
        data.source("test")[5]["codes"], Digits().source("test")[5]["image"][:2, :2].astype(np.float32)
    )


def test_a_writer_that_was_stopped_goes_on_and_leaves_what_is_whole(tmp_path):
    written(tmp_path)
    blocks = sorted(tmp_path.glob("*.npz"))
    assert [path.name for path in blocks] == ["test-00000.npz", "train-00000.npz", "train-00001.npz"]
    before = {path: path.read_bytes() for path in blocks}
    blocks[1].write_bytes(before[blocks[1]][:5000])  # cut short
    blocks[2].unlink()
    calls = []

    def counted(images):
        calls.append(len(images))
        return encode(images)

    written(tmp_path, encode=counted)
    assert calls == [1024, 233]
    assert {path: len(path.read_bytes()) for path in blocks} == {path: len(text) for path, text in before.items()}


def test_codes_of_another_tokeniser_are_written_anew(tmp_path):
    written(tmp_path)
    _, data = written(tmp_path, fingerprint=8, encode=lambda images: 16 - encode(images))
    assert data.fingerprint == 8
    np.testing.assert_array_equal(
        data.source("train")[0]["codes"], 16 - encode(Digits().source("train")[0]["image"][None])[0]
    )


def flipped(path):
    raw = bytearray(path.read_bytes())
    raw[200] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "codes.json").unlink(), "it is not a folder that"),
        (lambda folder: (folder / "codes.json").write_text("{"), "it is not a folder that"),
        (lambda folder: (folder / "codes.json").write_text("{}"), "codes.json lacks fingerprint, pictures"),
        (lambda folder: (folder / "train-00001.npz").unlink(), "train-00001.npz: it is missing or not whole"),
        (lambda folder: flipped(folder / "test-00000.npz"), "test-00000.npz: it is missing or not whole"),
        (lambda folder: changed(folder, fingerprint=9), "it is of another tokeniser than the rest of its folder"),
        (lambda folder: changed(folder, shape=[4, 4]), "it holds codes of"),
        (lambda folder: changed(folder, size=3), "it holds the id 16, and there are 3"),
    ],
)
def test_what_is_not_whole_is_refused_in_one_sentence(tmp_path, damage, said):
    written(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=said):
        Codes(path=str(tmp_path)).source("train")


def changed(folder, **fields):
    index = json.loads((folder / "codes.json").read_text())
    (folder / "codes.json").write_text(json.dumps(index | fields))


@dataclass(frozen=True)
class Holed:
    """The digits, of which some cannot be read."""

    class_names = Digits().class_names

    def source(self, split):
        whole = Digits().source(split)

        def read(row):
            if row % 10 == 3:
                raise InputError("cut short")
            return whole[row]

        return Examples(range(len(whole)), read, on_bad="skip")


def test_pictures_that_cannot_be_read_are_left_out_and_the_others_keep_their_labels(tmp_path):
    calls = []
    for _ in range(2):
        counts = write_codes(
            tmp_path, lambda images: calls.append(1) or encode(images), Holed(), fingerprint=7, size=17, shape=SHAPE
        )
    assert len(calls) == 3  # two blocks of one split, one of the other, written once
    places = [i for i in range(1257) if i % 10 != 3]
    assert counts["train"] == len(places)
    source = Codes(path=str(tmp_path)).source("train")
    assert [example["label"] for example in source] == [Digits().source("train")[i]["label"] for i in places]


def test_a_block_of_other_places_is_written_anew(tmp_path):
    """The last block of a set that has grown since."""
    written(tmp_path)
    block = tmp_path / "test-00000.npz"
    with np.load(block) as file:
        arrays = dict(file)
    np.savez(block, **arrays | {"places": np.int64(500)})
    calls = []
    written(tmp_path, encode=lambda images: calls.append(len(images)) or encode(images))
    assert calls == [540]


@pytest.mark.parametrize("path", [None, "nowhere"])
def test_a_folder_that_is_not_there_is_refused(path):
    with pytest.raises(InputError, match="sample.py --codes True"):
        Codes(path=path).source("train")
