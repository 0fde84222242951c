"""Weights on disk: one file, a folder, shards and their index; what is not whole or no safetensors is refused."""

import io
import json
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from genjax.errors import InputError
from genjax.interop.weight_files import read_config, read_metadata, read_state_dict, weight_files

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "c": np.array([[3]], np.float16),
    "d": np.zeros((0, 4), np.int64),
    "e": np.array(7, np.int32),
    "f": np.array([True, False, True]),
}


def write(path, arrays=ARRAYS):
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def shards(tmp_path):
    """A folder with the arrays in two files."""
    names = list(ARRAYS)
    told = {name: f"model-0000{1 + (i > 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(told.values()):
        write(tmp_path / file, {name: ARRAYS[name] for name in names if told[name] == file})
    index = {"metadata": {"total_size": 1}, "weight_map": told}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def check_equal(found):
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_a_file_and_the_folder_that_holds_it_are_read(tmp_path):
    path = write(tmp_path / "model.safetensors")
    for given in (path, tmp_path, str(tmp_path)):
        check_equal(read_state_dict(given))
    write(tmp_path / "model.fp16.safetensors", {"other": np.ones(1)})
    check_equal(read_state_dict(tmp_path))


def test_shards_are_read_by_their_index(shards):
    check_equal(read_state_dict(shards))
    check_equal(read_state_dict(shards / "model.safetensors.index.json"))
    files, told = weight_files(shards)
    assert [file.name for file in files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert told.keys() == ARRAYS.keys()


def test_arrays_are_views_of_the_file_that_cannot_be_written_to(tmp_path):
    found = read_state_dict(write(tmp_path / "model.safetensors"))
    for array in found.values():
        assert not array.flags.owndata and not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        found["a.weight"][0, 0] = 1


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(InputError, match=r"^there is no file or folder .*nowhere"):
        read_state_dict(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"^there is no safetensors file in .*[^s]$"):
        read_state_dict(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"only pytorch_model\.bin: pickles are programs, and are not read$"):
        read_state_dict(tmp_path)


def test_where_several_files_could_be_meant_one_is_to_be_named(tmp_path):
    for name in ("clip_g", "clip_l"):
        write(tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"several files of weights in .*: clip_g\.safetensors, clip_l\.safetensors;"):
        read_state_dict(tmp_path)
    check_equal(read_state_dict(tmp_path / "clip_l.safetensors"))


def pickled() -> bytes:
    return pickle.dumps({"a": 1})


def archived() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled())
    return file.getvalue()


@pytest.mark.parametrize("content", [pickled, archived])
def test_a_pickle_is_no_safetensors_file_whatever_its_name(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content())
    with pytest.raises(InputError, match=r"model\.safetensors is a pickle or an archive of one, whatever its name"):
        read_state_dict(tmp_path)


def test_a_header_as_long_as_a_pickle_begins_is_none(tmp_path):
    """The length of the header comes first: 0x80 is how pickles begin, and 0x4b50 how archives do."""
    path = tmp_path / "model.safetensors"
    for size in (0x80, 0x4B50):
        told = {"": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
        name = "a" * (size - len(json.dumps(told, separators=(",", ":"))))
        safetensors.numpy.save_file({name: np.ones(1, np.float32)}, path)
        assert path.read_bytes()[:8] == size.to_bytes(8, "little")
        assert read_state_dict(path)[name] == 1


def test_metadata_are_read(tmp_path):
    assert read_metadata(write(tmp_path / "model.safetensors")) == {"format": "pt"}
    safetensors.numpy.save_file(ARRAYS, tmp_path / "bare.safetensors")
    assert read_metadata(tmp_path / "bare.safetensors") == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: b"",
        lambda whole: whole[:8] + b"[" + whole[9:],
        lambda whole: (2**40).to_bytes(8, "little") + whole[8:],
        lambda whole: whole.replace(b'"shape":[2,3]', b'"shape":[2,4]'),
    ],
    ids=["cut", "longer", "empty", "header", "size", "shape"],
)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, damage):
    path = write(tmp_path / "model.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"model\.safetensors is not a whole safetensors file: [^\n]*$"):
        read_state_dict(path)


def test_shards_that_are_missing_or_hold_something_else_are_refused_by_name(shards):
    first, second = (shards / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    whole = {file: file.read_bytes() for file in (first, second)}
    second.unlink()
    with pytest.raises(InputError, match=r"index\.json names model-00002-of-00002\.safetensors, and there is no such"):
        read_state_dict(shards)
    second.write_bytes(whole[first])
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors lacks d, e, f, by the index beside it$"):
        read_state_dict(shards)
    write(second, {name: ARRAYS[name] for name in "def"} | {"g": np.ones(1)})
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors holds also g, by the index beside it$"):
        read_state_dict(shards)


@pytest.mark.parametrize("told", ["[]", "{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(shards, told):
    (shards / "model.safetensors.index.json").write_text(told)
    with pytest.raises(InputError, match=r"index\.json (is not a whole JSON file|holds no JSON object|is no index)"):
        read_state_dict(shards)


def test_of_shards_of_a_variant_the_index_is_named_as_released(shards):
    index = shards / "model.safetensors.index.json"
    index.rename(shards / "model.safetensors.index.fp16.json")
    check_equal(read_state_dict(shards))
    check_equal(read_state_dict(shards / "model.safetensors.index.fp16.json"))
    index.write_text(json.dumps({"weight_map": {"a.weight": "other.safetensors"}}))
    write(shards / "other.safetensors", {"a.weight": np.ones(1)})
    assert read_state_dict(shards).keys() == {"a.weight"}  # the one without a variant


def test_numbers_of_eight_bits_are_read_as_what_they_are(tmp_path):
    values = np.array([1.0, -0.5, 448.0])
    arrays = {"e4": values.astype(ml_dtypes.float8_e4m3fn), "e5": values[:2].astype(ml_dtypes.float8_e5m2)}
    header, data = {}, b""
    for (name, array), kind in zip(arrays.items(), ("F8_E4M3", "F8_E5M2"), strict=True):
        end = len(data) + array.nbytes
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    found = read_state_dict(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(found["e4"].astype(np.float32), values)
    np.testing.assert_array_equal(found["e5"].astype(np.float32), values[:2])


def test_the_config_of_a_folder_is_read_where_there_is_one(tmp_path):
    assert read_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"depth": 2}')
    assert read_config(tmp_path) == {"depth": 2}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not a whole JSON file"):
        read_config(tmp_path)
