"""Safetensors files of nested trees: what is written is read, whole or not at all."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.interop import trees


def test_a_tree_and_its_metadata_are_read_as_written(tmp_path):
    tree = {
        "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": jnp.ones(3)},
        "step": np.asarray(7, np.int32),
        "half": np.arange(3).astype(ml_dtypes.bfloat16),
    }
    trees.write_tree(tmp_path / "new" / "x.safetensors", tree, {"format": "pt"})
    read, metadata = trees.read_tree(tmp_path / "new" / "x.safetensors")
    assert metadata == {"format": "pt"}
    assert read["step"].shape == () and read["half"].dtype == ml_dtypes.bfloat16
    for ours, theirs in [
        (read["a"]["kernel"], tree["a"]["kernel"]),
        (read["a"]["bias"], np.ones(3)),
        (read["step"], 7),
    ]:
        np.testing.assert_array_equal(ours, theirs)


def test_a_transposed_view_keeps_its_values(tmp_path):
    view = np.arange(6.0).reshape(2, 3).T
    trees.write_tree(tmp_path / "x.safetensors", {"w": view})
    np.testing.assert_array_equal(trees.read_tree(tmp_path / "x.safetensors")[0]["w"], view)


def test_others_may_read_the_file(tmp_path):
    trees.write_tree(tmp_path / "x.safetensors", {"w": np.ones(2)})
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


def test_dotted_names_and_nesting_are_the_same_file(tmp_path):
    trees.write_tree(tmp_path / "flat", {"a.b": np.ones(2)})
    trees.write_tree(tmp_path / "nested", {"a": {"b": np.ones(2)}})
    assert (tmp_path / "flat").read_bytes() == (tmp_path / "nested").read_bytes()
    assert list(trees.read_flat(tmp_path / "flat")[0]) == ["a.b"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    trees.write_tree(tmp_path / "x", {"a": np.ones(2)})
    with pytest.raises(Exception, match="."):
        trees.write_tree(tmp_path / "x", {"a": np.array(["text"])})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    np.testing.assert_array_equal(trees.read_tree(tmp_path / "x")[0]["a"], np.ones(2))


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-1], lambda whole: b"PK" + whole])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    trees.write_tree(path, {"a": np.ones(2)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="x.safetensors is not a whole safetensors file"):
        trees.read_tree(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        trees.read_tree(tmp_path / "absent.safetensors")


def test_equal_trees_are_equal_files_whatever_the_order_of_their_metadata(tmp_path):
    tree, names = {"a": np.ones(3), "b": {"é": np.zeros(2)}}, [f"name {i}" for i in range(8)]
    for number in range(4):
        order = names[number:] + names[:number]
        trees.write_tree(tmp_path / f"{number}.safetensors", tree, {name: f'"{name}"' for name in order})
    found = {(tmp_path / f"{number}.safetensors").read_bytes() for number in range(4)}
    assert len(found) == 1
    read, metadata = trees.read_tree(tmp_path / "0.safetensors")
    assert list(read) == ["a", "b"] and metadata == {name: f'"{name}"' for name in names}
