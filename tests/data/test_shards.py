import json
import tarfile

import numpy as np
import pytest

from genjax.data import ImageFolder, Loader, WebDataset
from genjax.errors import InputError


@pytest.fixture
def shards(folder, tmp_path, write_tar):
    """The images of `folder` in two shards: text captions in the first, JSON in the second."""
    images = sorted(folder.rglob("*.png"))
    first = [(p.name, p.read_bytes()) for image in images[:3] for p in (image.with_suffix(".txt"), image)]
    second = []
    for image in images[3:]:
        record = {"caption": image.with_suffix(".txt").read_text(), "other": 1}
        second += [(f"sub/{image.name}", image.read_bytes()), (f"sub/{image.stem}.json", json.dumps(record).encode())]
    place = tmp_path / "shards"
    place.mkdir()
    write_tar(place / "0.tar", [("README", b"left alone"), ("3.cls", b"3"), *first])
    write_tar(place / "1.tar", second)
    return place


def source(path, **fields):
    return WebDataset(str(path), **{"image_size": 8, "test_fraction": 0.0} | fields).source("train")


def test_shards_give_the_examples_of_the_folder_they_were_made_of(shards, folder):
    expected = ImageFolder(str(folder), image_size=8, test_fraction=0.0).source("train")
    for path in (shards, shards / "*.tar"):
        for one, other in zip(source(path), expected, strict=True):
            np.testing.assert_array_equal(one["image"], other["image"])
            assert one["captions"] == other["captions"]
    assert len(source(shards / "1.tar")) == 3


def test_a_text_caption_goes_before_a_record(tmp_path, write_tar, encoded):
    members = [("x.json", b'{"caption": "record"}'), ("x.png", encoded(0)), ("x.txt", b"text")]
    assert source(write_tar(tmp_path / "s.tar", members))[0]["captions"] == ("text",)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_shard_cut_at_any_block_is_refused_by_name_when_it_is_opened(shards, tmp_path, format):
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w", format=format) as tar:
        tar.add(shards.parent / "pairs", arcname="x" * 90)
    assert len(source(whole)) == 6
    with tarfile.open(whole) as tar:
        end = tar.getmembers()[-1]
    data, cut = whole.read_bytes(), tmp_path / "cut.tar"
    for length in range(0, end.offset_data + 512 + 1, 256):
        cut.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.tar: "):
            source(cut, on_bad="skip")


def test_a_corrupt_header_is_refused_by_the_name_of_its_shard(shards):
    with tarfile.open(shards / "1.tar") as tar:
        offset = tar.getmembers()[2].offset
    data = bytearray((shards / "1.tar").read_bytes())
    data[offset + 100] ^= 0xFF
    (shards / "1.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"1\.tar: the tar is cut short or corrupt after 2 members"):
        source(shards)


def test_a_compressed_or_foreign_file_is_refused_by_name(shards, tmp_path):
    for name, mode in [("x.tar", "w:gz"), ("y.tar", None)]:
        if mode:
            tarfile.open(tmp_path / name, mode).close()
        else:
            (tmp_path / name).write_bytes(b"no tar" * 200)
        with pytest.raises(InputError, match=rf"{name}: not a whole, uncompressed tar"):
            source(tmp_path / name)


def test_a_path_without_shards_is_refused(shards):
    for path in (shards.parent / "pairs", shards / "*.zip"):
        with pytest.raises(InputError, match=r"has no \.tar shards"):
            source(path)
    with pytest.raises(InputError, match="nowhere does not exist"):
        source(shards / "nowhere")
    with pytest.raises(InputError, match="^path is not set"):
        WebDataset().source("train")


@pytest.fixture(params=["truncated", "no image", "no caption", "bad record", "two images"])
def bad_shard(request, tmp_path, write_tar, encoded):
    good = [m for i in range(4) for m in [(f"{i}.png", encoded(i)), (f"{i}.txt", f"image {i}".encode())]]
    members, message = {
        "truncated": ([("k.png", encoded(9)[:100]), ("k.txt", b"image 9")], r"s\.tar::k\.png: not a whole"),
        "no image": ([("k.txt", b"image 9")], r"s\.tar::k: has 0 images and 1 captions"),
        "no caption": ([("k.png", encoded(9))], r"s\.tar::k: has 1 images and 0 captions"),
        "bad record": ([("k.png", encoded(9)), ("k.json", b"{")], r"s\.tar::k\.json: not valid JSON"),
        "two images": ([("k.png", b""), ("k.jpg", b""), ("k.txt", b"image 9")], r"s\.tar::k: has 2 images"),
    }[request.param]
    return write_tar(tmp_path / "s.tar", [*good[:4], *members, *good[4:]]), message


def test_a_bad_member_is_told_by_shard_and_name(bad_shard, rows):
    path, message = bad_shard
    with pytest.raises(InputError, match=message):
        list(Loader(source(path), batch_size=2, seed=0, transform=rows, repeat=False))


def test_a_bad_member_is_skipped_and_counted(bad_shard, rows):
    loader = Loader(source(bad_shard[0], on_bad="skip"), batch_size=2, seed=0, transform=rows, repeat=False)
    assert sorted(int(number) for batch in loader for number in batch["number"]) == [0, 1, 2, 3]
    assert loader.skipped == 1


def test_a_shard_that_changes_after_it_was_opened_is_told(shards):
    opened = source(shards)
    (shards / "1.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"1\.tar::sub/5\.png: cut short after 0 of"):
        opened[5]
