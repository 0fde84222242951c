"""Laws of finding the kind of a dataset by what lies at its path."""

from dataclasses import replace

import pytest

from genjax.data import Digits, Idx, ImageFolder, Images, Npz, WebDataset
from genjax.errors import InputError


@pytest.mark.parametrize(
    ("files", "path", "kind"),
    [
        ([], None, Digits),
        (["a.npz"], "a.npz", Npz),
        (["a.tar"], "a.tar", WebDataset),
        (["a.tar", "b.tar"], ".", WebDataset),
        ([], "shards-*.tar", WebDataset),
        (["train-images-idx3-ubyte"], ".", Idx),
        (["train-images-idx3-ubyte.gz"], ".", Idx),
        (["x.png", "x.txt"], ".", ImageFolder),
        (["metadata.jsonl"], ".", ImageFolder),
    ],
)
def test_what_lies_at_the_path_tells_the_kind(tmp_path, files, path, kind):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    assert type(Images(path and str(tmp_path / path)).dataset) is kind


def test_fields_reach_the_dataset(tmp_path):
    given = dict(image_size=32, channels=1, flip=True, on_bad="skip", test_fraction=0.5)
    assert Images(str(tmp_path), **given).dataset == ImageFolder(str(tmp_path), **given)
    assert Images(str(tmp_path / "a.tar"), **given).dataset == WebDataset(str(tmp_path / "a.tar"), **given)


def test_the_default_is_the_digits():
    images, digits = Images(), Digits()
    assert (images.image_shape, images.class_names) == (digits.image_shape, digits.class_names)
    assert len(images.source("train")) == len(digits.source("train")) == 1257


def test_a_path_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="/no/such/folder"):
        replace(Images(), path="/no/such/folder").source("train")
