"""Maps between parameter trees and other projects' state dicts, written as tables and read in both directions.

A row of a table names a layer here, the layer there (or several, whose outputs are one matrix here) and the shape of
the weight there, one letter for each axis:

    ("attn.qkv", "to_q to_k to_v", "oi")        a linear layer: (out, in) there, (in, out) here
    ("conv1", "conv1", "oikk")                  a convolution: (out, in, row, column) there, (row, column, in, out) here
    ("norm", "group_norm", "o")                 a norm: `weight` there, `scale` here

`entries` spells a table out for given sizes, `from_state_dict` and `to_state_dict` move the arrays. They are never
computed with and keep their type, so both directions are exact; each array there and each leaf here is used once, and
has the shape that the table says. What does not fit is refused by name.

Arrays are asked for one after the other: of a state dict that reads its arrays from disk when they are asked for, no
more than one is held beside the tree.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.errors import InputError

__all__ = [
    "Entry",
    "Layout",
    "Row",
    "StateDict",
    "check_config",
    "check_finite",
    "check_names",
    "entries",
    "from_state_dict",
    "layers_in",
    "swapped_halves",
    "to_state_dict",
]

StateDict = Mapping[str, np.ndarray]

Row = tuple[str, str, str]
"""Layer here, layers there, shape of each weight there."""

Layout = Literal["same", "linear", "convolution", "patches"]
"""`same`: vectors, tables; `patches`: a convolution there, linear in (row, column, channel) of a patch here."""


@dataclass(frozen=True)
class Entry:
    """One leaf of a tree (or one layer of a leaf that stacks layers) and the arrays of a state dict that hold it."""

    ours: str
    """Its dotted name."""
    theirs: tuple[str, ...]
    """Names there; several are pieces of the last axis here, equally long."""
    shape: tuple[int, ...]
    """Of each array there."""
    layout: Layout = "same"
    index: int | None = None
    """Layer of the stack, if it is one."""
    swapped: bool = False
    """The two halves of the last axis here are the other way round there."""

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Of the leaf, or of the layer of it."""
        match self.layout:
            case "patches":
                shape = np.prod(self.shape[1:], dtype=int).item(), self.shape[0]
            case "convolution":
                shape = (*self.shape[2:], *self.shape[1::-1])
            case "linear":
                shape = self.shape[::-1]
            case _:
                shape = self.shape
        return (*shape[:-1], shape[-1] * len(self.theirs))

    def join(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """The leaf from the arrays there."""
        if self.layout in ("convolution", "patches"):
            pieces = [piece.transpose(2, 3, 1, 0) for piece in pieces]
        elif self.layout == "linear":
            pieces = [piece.T for piece in pieces]
        joined = np.concatenate(pieces, axis=-1) if len(pieces) > 1 else np.asarray(pieces[0])
        return self._turned_round(joined.reshape(self.our_shape))

    def split(self, leaf: np.ndarray) -> list[np.ndarray]:
        """The arrays there from the leaf."""
        pieces = np.split(self._turned_round(leaf), len(self.theirs), axis=-1)
        if self.layout in ("convolution", "patches"):
            out, into, height, width = self.shape
            return [piece.reshape(height, width, into, out).transpose(3, 2, 0, 1) for piece in pieces]
        return [piece.T for piece in pieces] if self.layout == "linear" else pieces

    def _turned_round(self, leaf: np.ndarray) -> np.ndarray:
        return swapped_halves(leaf) if self.swapped else leaf


def entries(
    table: Iterable[Row],
    ours: str,
    theirs: str,
    sizes: Mapping[str, int],
    index: int | None = None,
    *,
    biases: bool = True,
    swapped: Container[str] = (),
) -> Iterator[Entry]:
    """The weight, and with `biases` the bias, of each layer of a table; names begin with `ours` and `theirs`.

    `sizes` says how long the axis of each letter is, and `swapped` which layers have their halves the other way round.
    """
    for layer, names, letters in table:
        shape = tuple(sizes[letter] for letter in letters)
        layout, leaf = {1: ("same", "scale"), 2: ("linear", "kernel"), 4: ("convolution", "kernel")}[len(shape)]
        prefixed = [theirs + name for name in names.split()]
        other = ours + layer in swapped
        yield Entry(f"{ours}{layer}.{leaf}", tuple(f"{name}.weight" for name in prefixed), shape, layout, index, other)
        if biases:
            bias = tuple(f"{name}.bias" for name in prefixed)
            yield Entry(f"{ours}{layer}.bias", bias, shape[:1], "same", index, other)


def from_state_dict(table: Iterable[Entry], state_dict: StateDict, what: str) -> dict:
    """The nested tree of parameters that a state dict holds; `what` is what it should be, for people.

    Raises InputError where names are missing or unknown, where a shape is another one, where a number is not finite,
    and where what becomes one leaf is of two types.
    """
    table = list(table)
    check_names(state_dict, {name for entry in table for name in entry.theirs}, what)
    flat: dict[str, np.ndarray] = {}
    depths = _depths(table)
    for entry in table:
        pieces = [state_dict[name] for name in entry.theirs]
        for name, piece in zip(entry.theirs, pieces, strict=True):
            _check_shape(name, piece.shape, entry.shape)
            check_finite(name, piece)
            held = flat.get(entry.ours, pieces[0]).dtype
            if piece.dtype != held:
                raise InputError(
                    f"{name} is of {piece.dtype}, and {held} is what the other parts of {entry.ours} are of"
                )
        leaf = entry.join(pieces)
        if entry.index is None:
            flat[entry.ours] = leaf
            continue
        if entry.ours not in flat:
            flat[entry.ours] = np.empty((depths[entry.ours], *leaf.shape), leaf.dtype)
        flat[entry.ours][entry.index] = leaf
    return unflatten_dict(flat, sep=".")


def to_state_dict(table: Iterable[Entry], params: Mapping, what: str) -> dict[str, np.ndarray]:
    """The state dict of a nested tree of parameters; arguments and errors as those of `from_state_dict`."""
    table = list(table)
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    check_names(flat, {entry.ours for entry in table}, what)
    depths = _depths(table)
    state_dict = {}
    for entry in table:
        stack = (depths[entry.ours],) if depths[entry.ours] else ()
        _check_shape(entry.ours, flat[entry.ours].shape, stack + entry.our_shape)
        leaf = flat[entry.ours] if entry.index is None else flat[entry.ours][entry.index]
        state_dict.update(zip(entry.theirs, entry.split(leaf), strict=True))
    # A transposed view would be written as it lies in memory.
    return {name: np.asarray(array, order="C") for name, array in state_dict.items()}


def swapped_halves(leaf: np.ndarray) -> np.ndarray:
    """The array with the two halves of its last axis the other way round."""
    return np.roll(leaf, leaf.shape[-1] // 2, axis=-1)


def layers_in(names: Iterable[str], start: str) -> int:
    """How many layers there are, by the highest number behind `start` in names; at least one."""
    numbers = (name.removeprefix(start).split(".")[0] for name in names if name.startswith(start))
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)


def _depths(table: Iterable[Entry]) -> dict[str, int]:
    """How many layers each leaf stacks; 0 where it stacks none."""
    depths: dict[str, int] = defaultdict(int)
    for entry in table:
        depths[entry.ours] += entry.index is not None
    return depths


def check_names(found: Iterable[str], expected: Iterable[str], what: str) -> None:
    """Raises InputError where names are missing or unknown; it names up to six of each."""
    found, expected = set(found), set(expected)
    complaints = [
        f"{label} {', '.join(sorted(names)[:6])}{f' and {len(names) - 6} more' * (len(names) > 6)}"
        for label, names in [("missing", expected - found), ("unknown", found - expected)]
        if names
    ]
    if complaints:
        raise InputError(f"these are not {what} that genjax knows: {'; '.join(complaints)}")


def check_config(config: Mapping[str, Any], needed: Iterable[str], only: Mapping[str, Any], what: str) -> None:
    """Raises InputError where a `config.json` lacks what is needed, or asks for what is not computed here.

    `only` holds the one value that is known of each choice, which is also what is meant where the choice is left open.
    """
    missing = [name for name in needed if name not in config]
    if missing:
        raise InputError(f"the config of a {what} has no {', '.join(missing)}")
    for name, value in only.items():
        if config.get(name, value) != value:
            raise InputError(f"the config of a {what} has {name} = {config[name]!r}; genjax knows {value!r} only")


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(shape) != expected:
        raise InputError(f"{name} is of shape {tuple(shape)}, and {expected} is what fits the other arrays")


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises InputError where a number is not finite."""
    wrong = np.size(array) - np.count_nonzero(np.isfinite(array))
    if wrong:
        raise InputError(f"{name} has {wrong} numbers that are not finite, of {np.size(array)}")
