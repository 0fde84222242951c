"""Laws of bytes at a place: a whole file, or a member inside another one."""

import pytest

from genjax.data.pairs import Blob
from genjax.errors import InputError


def test_a_blob_is_the_bytes_at_its_place(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert Blob(str(path)).read() == b"0123456789"
    assert Blob(str(path), "member", offset=3, size=4).read() == b"3456"


def test_a_name_tells_shard_and_member():
    assert Blob("a.tar", "b.png").name == "a.tar::b.png"
    assert Blob("b.png").name == "b.png"


def test_missing_and_cut_files_are_named(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(InputError, match="file: cannot be read"):
        Blob(str(path)).read()
    path.write_bytes(b"012")
    with pytest.raises(InputError, match="file::m: cut short after 2 of 4 bytes"):
        Blob(str(path), "m", offset=1, size=4).read()
