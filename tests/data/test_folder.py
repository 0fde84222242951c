import json
import shutil

import numpy as np
import pytest

from genjax.data import ImageFolder, Loader
from genjax.errors import InputError


def dataset(path, **fields):
    return ImageFolder(str(path), **{"image_size": 8, "test_fraction": 0.0} | fields)


def write_metadata(folder, *lines):
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(x) if isinstance(x, dict) else x for x in lines))


def count_skips(source, transform) -> tuple[list[int], int]:
    loader = Loader(source, batch_size=2, seed=0, transform=transform, repeat=False)
    numbers = [int(number) for batch in loader for number in batch["number"]]
    return sorted(numbers), loader.skipped


def test_images_are_found_recursively_with_their_captions(folder):
    source = dataset(folder).source("train")
    assert [example["captions"] for example in source] == [(f"image {index}",) for index in range(6)]
    assert all(example["image"].shape == dataset(folder).image_shape == (8, 8, 3) for example in source)
    assert all(example["label"] == -1 for example in source) and dataset(folder).class_names == ()


def test_grey_is_asked_for_by_channels(folder):
    assert dataset(folder, channels=1).source("train")[0]["image"].shape == (8, 8, 1)


def test_splits_are_a_partition(folder):
    parts = [dataset(folder, test_fraction=0.3).source(split) for split in ("train", "test")]
    captions = [example["captions"] for part in parts for example in part]
    assert len(parts[1]) == 2 and sorted(captions) == [(f"image {index}",) for index in range(6)]


def test_metadata_gives_the_same_examples_as_text_files(folder):
    expected = list(dataset(folder).source("train"))
    write_metadata(folder, *({"file_name": f"{'aaabbb'[i]}/{i}.png", "text": f"image {i}"} for i in range(6)), "")
    for text in folder.rglob("*.txt"):
        text.unlink()
    for one, other in zip(dataset(folder).source("train"), expected, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        assert one["captions"] == other["captions"]


def test_flips_are_drawn_anew_each_epoch_and_only_in_training(folder, rows):
    data = dataset(folder, flip=True, test_fraction=0.5)
    originals = {example["captions"]: example["image"] for s in ("train", "test") for example in data.source(s)}

    def flips(split: str) -> list[bool]:
        loader = Loader(data.source(split), batch_size=3, seed=0, transform=rows, shuffle=False)
        batches = [next(loader) for _ in range(8)]
        images = [(n, image) for b in batches for n, image in zip(b["number"], b["image"], strict=True)]
        return [not np.array_equal(image, originals[(f"image {number}",)]) for number, image in images]

    assert not any(flips("test")) and flips("train") == flips("train")
    assert {tuple(flips("train")[i::3]) for i in range(3)}.isdisjoint({(True,) * 8, (False,) * 8})


def remove_caption(folder):
    (folder / "a" / "1.txt").unlink()
    return r"a/1\.txt: missing"


def empty_caption(folder):
    (folder / "a" / "1.txt").write_text("")
    return r"a/1\.txt: the caption file is empty"


def truncate_image(folder):
    (folder / "a" / "1.png").write_bytes((folder / "a" / "1.png").read_bytes()[:100])
    return r"a/1\.png: not a whole"


def write_no_image(folder):
    (folder / "a" / "1.png").write_text("<html>404</html>")
    return r"a/1\.png: not a whole"


def bad_line(line):
    def write(folder):
        good = [{"file_name": f"{'aaabbb'[i]}/{i}.png", "text": f"image {i}"} for i in range(6)]
        write_metadata(folder, good[0], line, *good[2:])
        return r"metadata\.jsonl, line 2: "

    return write


BAD = [
    remove_caption,
    empty_caption,
    truncate_image,
    write_no_image,
    bad_line("{not json"),
    bad_line({"file_name": "a/1.png"}),
    bad_line({"text": "no name"}),
    bad_line({"file_name": "a/nothing.png", "text": "no image"}),
    bad_line({"file_name": "../pairs/a/1.png", "text": "outside"}),
]


@pytest.mark.parametrize("spoil", BAD)
def test_a_bad_example_is_told_by_name(folder, rows, spoil):
    message = spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        count_skips(dataset(folder).source("train"), rows)
    assert type(caught.value) is InputError and str(caught.value).endswith(".")


@pytest.mark.parametrize("spoil", BAD)
def test_a_bad_example_is_skipped_and_counted(folder, rows, spoil):
    spoil(folder)
    assert count_skips(dataset(folder, on_bad="skip").source("train"), rows) == ([0, 2, 3, 4, 5], 1)


@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_a_folder_without_usable_images_is_refused(folder, on_bad):
    for caption in folder.rglob("*.txt"):
        caption.unlink()
    with pytest.raises(InputError, match=r"\.txt: missing"):
        dataset(folder, on_bad=on_bad).source("train")
    shutil.rmtree(folder / "a")
    shutil.rmtree(folder / "b")
    with pytest.raises(InputError, match="there are no images"):
        dataset(folder, on_bad=on_bad).source("train")


def test_a_path_that_is_no_folder_is_refused(folder):
    for path, message in [(folder / "a" / "1.png", "is not a folder"), (folder / "c", "does not exist")]:
        with pytest.raises(InputError, match=message):
            dataset(path).source("train")
    with pytest.raises(InputError, match="^path is not set"):
        ImageFolder().source("train")


@pytest.mark.parametrize(("field", "value"), [("channels", 2), ("image_size", 0)])
def test_a_shape_that_images_cannot_have_is_refused(folder, field, value):
    with pytest.raises(InputError, match=f"^{field} is {value}; it must be 1 or"):
        dataset(folder, **{field: value})
