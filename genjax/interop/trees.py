"""Trees of arrays as safetensors files, the format checkpoints are traded in (github.com/huggingface/safetensors).

A nested dict {"blocks": {"mlp": {"kernel": w}}} is stored under dotted names ("blocks.mlp.kernel"), beside string
metadata. A flat dict whose names hold dots already, such as another project's state dict, gives the same file.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.errors import InputError

__all__ = ["read_flat", "read_tree", "write_tree"]


def write_tree(path: str | Path, tree: Mapping, metadata: Mapping[str, str] | None = None) -> None:
    """Write a nested dict of arrays; a reader sees the old file or the whole new one, never a part of it."""
    path = Path(path)
    # A transposed view must be copied first: safetensors writes its memory as it lies, under the transposed shape.
    flat = {name: np.asarray(leaf, order="C") for name, leaf in flatten_dict(tree, sep=".").items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        safetensors.numpy.save_file(flat, temporary, metadata=dict(metadata or {}))
        _in_order(temporary)
        temporary.chmod(0o644)  # safetensors lets only the owner read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _in_order(path: Path) -> None:
    """Put the metadata in the order of its names, in which safetensors does not: equal trees are equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if len(header.get("__metadata__", {})) < 2:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise ValueError(f"the header of {path} in order takes {len(text)} bytes, and there are {size}")
        file.seek(8)
        file.write(text.ljust(size))


def read_tree(path: str | Path) -> tuple[dict, dict[str, str]]:
    """The nested dict of numpy arrays in a safetensors file, and its metadata. Raises as `read_flat`."""
    flat, metadata = read_flat(path)
    return unflatten_dict(flat, sep="."), metadata


def read_flat(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file by their dotted names, as a state dict, and its metadata.

    Raises InputError where the file is missing or damaged.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}; expected a safetensors file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error
