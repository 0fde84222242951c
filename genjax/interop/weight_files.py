"""Weights on disk, as other projects lay them down: a safetensors file, or a folder with one, or several and an index.

Arrays are views of the files, mapped into memory: what is not looked at is not read, and what is read is not held
twice. Other formats are refused. A pickle is a program, whatever its name says, and none is ever run here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from genjax.errors import InputError

__all__ = ["read_config", "read_json", "read_metadata", "read_state_dict", "weight_files"]

INDEX = "*.safetensors.index*.json"
"""Of a variant the name is `model.safetensors.index.fp16.json`."""
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
PICKLED = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file, or of a folder's, by their names; they cannot be written to.

    Raises InputError where there is none, where a file is damaged or no safetensors file, and where an index names
    what is not there, or does not name what is.
    """
    files, index = weight_files(path)
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        found = _mapped(file)
        if index is not None:
            _check_shard(file, found, {name for name, shard in index.items() if shard == file.name})
        arrays |= found
    return arrays


def weight_files(path: str | Path) -> tuple[list[Path], dict[str, str] | None]:
    """(the safetensors files of a file or folder, the index of several: the file of each array).

    Of a folder, its index or its only file without a variant (`model.safetensors`, not `model.fp16.safetensors`).
    Raises InputError where there is none, or more than one could be meant.
    """
    path = Path(path)
    if path.is_file():
        return _indexed(path) if path.match(INDEX) else ([path], None)
    if not path.is_dir():
        raise InputError(f"there is no file or folder {path}; weights are a safetensors file, or a folder with some")
    indices = sorted(path.glob(INDEX))
    plain = [index for index in indices if _plain(index)]
    if indices:
        return _indexed(_only(path, plain or indices, "indices of weights"))
    found = sorted(path.glob("*.safetensors"))
    if not found:
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in PICKLED)
        more = f", only {', '.join(pickled)}: pickles are programs, and are not read" if pickled else ""
        raise InputError(f"there is no safetensors file in {path}{more}")
    return [_only(path, [file for file in found if _plain(file)] or found, "files of weights")], None


def read_config(path: str | Path) -> dict[str, Any] | None:
    """The `config.json` of a folder; None where there is none. Raises InputError where it is damaged."""
    file = Path(path) / "config.json"
    return read_json(file) if file.is_file() else None


def read_metadata(file: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises InputError where it is damaged or none."""
    return _header(Path(file))[0].get("__metadata__", {})


def _plain(file: Path) -> bool:
    """Whether a name has no variant: model.safetensors, model.safetensors.index.json."""
    return file.name.removesuffix(".index.json").removesuffix(".safetensors").count(".") == 0


def _only(folder: Path, found: list[Path], what: str) -> Path:
    if len(found) > 1:
        raise InputError(f"there are several {what} in {folder}: {', '.join(file.name for file in found)}; name one")
    return found[0]


def _indexed(index: Path) -> tuple[list[Path], dict[str, str]]:
    told = read_json(index).get("weight_map")
    if not isinstance(told, dict) or not told or not all(isinstance(name, str) for name in told.values()):
        raise InputError(f"{index} is no index of weights: it has no weight_map from names to files")
    files = [index.parent / name for name in sorted(set(told.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{index} names {', '.join(missing)}, and there is no such file beside it")
    return files, told


def read_json(file: str | Path) -> dict[str, Any]:
    """What a JSON file says. Raises InputError where it is no whole one, or holds no object."""
    file = Path(file)
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not a whole JSON file: {error}") from error
    if not isinstance(told, dict):
        raise InputError(f"{file} holds no JSON object")
    return told


def _check_shard(file: Path, found: Mapping[str, np.ndarray], named: set[str]) -> None:
    for verb, names in (("lacks", named - found.keys()), ("holds also", found.keys() - named)):
        if names:
            more = f" and {len(names) - 6} more" * (len(names) > 6)
            raise InputError(f"{file} {verb} {', '.join(sorted(names)[:6])}{more}, by the index beside it")


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """(What a safetensors file says of itself, where its arrays begin)."""
    with file.open("rb") as opened:
        start = opened.read(9)
    if start[8:] != b"{" and start.startswith((b"\x80", b"PK")):  # a header may be 128 bytes long, and begins with {
        raise InputError(f"{file} is a pickle or an archive of one, whatever its name: safetensors files are read only")
    try:
        with safetensors.safe_open(file, framework="numpy"):  # checks the header against the file
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a whole safetensors file: {error}") from error
    size = int.from_bytes(start[:8], "little")
    with file.open("rb") as opened:
        opened.seek(8)
        return json.loads(opened.read(size)), 8 + size


def _mapped(file: Path) -> dict[str, np.ndarray]:
    """Views of the arrays of a safetensors file."""
    header, start = _header(file)
    header.pop("__metadata__", None)
    whole = np.memmap(file, np.uint8, "r")
    arrays = {}
    for name, told in header.items():
        if told["dtype"] not in DTYPES:
            raise InputError(f"{file}: {name} is of {told['dtype']}; {', '.join(DTYPES)} are read")
        begin, end = (start + place for place in told["data_offsets"])
        arrays[name] = np.asarray(whole[begin:end]).view(DTYPES[told["dtype"]]).reshape(told["shape"])
    return arrays
