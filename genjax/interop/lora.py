"""Adapters of low rank in the names that peft and diffusers have for them.

    here     blocks.image.attn.qkv.{a,b}                     a (layers, 3, in, r), b (layers, 3, r, out)
    there    transformer_blocks.0.attn.to_q.lora_A.weight    (r, in), for each layer and each of the three
             transformer_blocks.0.attn.to_q.lora_B.weight    (out, r)

Which layer is which is said by the table of the network (tables.py), so that whatever has one has this too. Names begin
with `transformer.` in diffusers' files and with `base_model.model.` in peft's. Where a file adapts some layers of a
stack, or some of queries, keys and values, the others get zeros, which change nothing. Arrays are moved and keep their
type: both directions are exact.

How strongly an adapter acts is no array. diffusers writes it into the metadata of a file, peft into
`adapter_config.json`; `metadata_for_diffusers` and `config_for_peft` make them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.errors import InputError
from genjax.interop.tables import Entry, StateDict, swapped_halves

__all__ = [
    "IN_DIFFUSERS",
    "IN_PEFT",
    "config_for_peft",
    "from_state_dict",
    "metadata_for_diffusers",
    "scale_from_metadata",
    "to_state_dict",
]

IN_DIFFUSERS, IN_PEFT = "transformer.", "base_model.model."
"""What names begin with in either's files."""
PARTS = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
METADATA = "lora_adapter_metadata"
NAME = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)")


def to_state_dict(table: Iterable[Entry], adapter: Mapping, prefix: str = IN_DIFFUSERS) -> dict[str, np.ndarray]:
    """The arrays of an adapter {layer: {"a", "b", "magnitude"}} of the network of a table, by their names there.

    Raises InputError where the adapter has a layer that the table lacks, or an array that does not fit.
    """
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(adapter, sep=".").items()}
    state_dict, used = {}, set()
    for linear in _linear(table):
        for part, theirs in PARTS.items():
            name = f"{linear.ours}.{part}"
            if name not in flat:
                continue
            used.add(name)
            for layer, array in zip(linear.theirs, _split(linear, part, flat[name]), strict=True):
                state_dict[f"{prefix}{layer}.{theirs}"] = np.asarray(array.T, order="C")
    if set(flat) - used:
        raise InputError(f"the adapter has layers that the network lacks: {', '.join(sorted(set(flat) - used)[:6])}")
    return state_dict


def from_state_dict(table: Iterable[Entry], state_dict: StateDict, prefix: str = IN_DIFFUSERS) -> dict:
    """The adapter that a state dict holds of the network of a table.

    Raises InputError for names that the network has no layer for, for arrays that do not fit it, and where layers of
    one leaf differ in rank or in what they have.
    """
    given: dict[str, dict[str, np.ndarray]] = {}
    for name, array in state_dict.items():
        found = NAME.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if found is None:
            raise InputError(f"{name} is not of an adapter of low rank whose names begin with {prefix}")
        given.setdefault(found[1], {})[found[2].removesuffix(".weight")] = np.asarray(array)
    tree: dict[str, dict[str, list[np.ndarray]]] = {}
    table = list(_linear(table))
    unknown = given.keys() - {layer for linear in table for layer in linear.theirs}
    if unknown:
        raise InputError(f"the adapter has layers that the network lacks: {', '.join(sorted(unknown)[:6])}")
    adapted = {linear.ours for linear in table if given.keys() & set(linear.theirs)}
    for ours in sorted(adapted):
        pieces = [(layer, linear) for linear in table if linear.ours == ours for layer in linear.theirs]
        parts = {part: theirs.removesuffix(".weight") for part, theirs in PARTS.items()}
        known = {part for layer, _ in pieces for part in given.get(layer, {})}
        for layer, _ in pieces:
            if layer in given and not {"lora_A", "lora_B"} <= given[layer].keys() == known:
                has = ", ".join(sorted(given[layer]))
                raise InputError(f"{layer} has {has} alone; lora_A and lora_B belong together, and a magnitude to all")
        rank = _rank(given, pieces)
        for part, theirs in parts.items():
            if theirs in known:
                tree.setdefault(ours, {})[part] = _joined(part, theirs, given, pieces, rank)
    return unflatten_dict({f"{ours}.{part}": leaf for ours, own in tree.items() for part, leaf in own.items()}, sep=".")


def metadata_for_diffusers(state_dict: StateDict, rank: int, alpha: float, **options: Any) -> dict[str, str]:
    """The metadata of a file of these arrays; `options` are those of peft's LoraConfig: use_rslora, use_dora."""
    config = {f"{IN_DIFFUSERS}{name}": value for name, value in _config(state_dict, IN_DIFFUSERS, rank, alpha).items()}
    config |= {f"{IN_DIFFUSERS}{name}": value for name, value in options.items()}
    return {"format": "pt", METADATA: json.dumps(config, indent=2, sort_keys=True)}


def config_for_peft(state_dict: StateDict, rank: int, alpha: float, **options: Any) -> dict[str, Any]:
    """The `adapter_config.json` beside a file of these arrays; `options` as those of `metadata_for_diffusers`."""
    return {"peft_type": "LORA", "task_type": None, **_config(state_dict, IN_PEFT, rank, alpha), **options}


def scale_from_metadata(metadata: Mapping[str, str], rank: int) -> dict[str, Any]:
    """Fields of a LoRA that diffusers' metadata tell: its alpha, and whether it is rank-stabilised or decomposed.

    Where a file tells nothing alpha is the rank, as diffusers takes it. A pipeline's file says `transformer.` before
    each name, a network's does not. Raises InputError where layers have alphas or ranks of their own.
    """
    try:
        told = json.loads(metadata.get(METADATA, "{}"))
    except ValueError as error:
        raise InputError(f"{METADATA} of the file is not JSON: {error}") from error
    own = {name.removeprefix(IN_DIFFUSERS): value for name, value in told.items()}
    for name in ("alpha_pattern", "rank_pattern"):
        if own.get(name):
            raise InputError(
                f"the adapter has {name}, of layers that act otherwise than the rest: one alpha is known here"
            )
    return {
        "rank": rank,
        "alpha": float(own.get("lora_alpha", rank)),
        "rank_stabilised": bool(own.get("use_rslora", False)),
        "decomposed": bool(own.get("use_dora", False)),
    }


class _Linear(NamedTuple):
    """A layer of ours that is adapted, or one of its stack."""

    ours: str
    theirs: tuple[str, ...]
    into: int
    out: int
    """Of each of theirs."""
    index: int | None
    swapped: bool


def _linear(table: Iterable[Entry]) -> Iterator[_Linear]:
    for entry in table:
        if entry.layout == "linear":
            names = tuple(name.removesuffix(".weight") for name in entry.theirs)
            out, into = entry.shape
            yield _Linear(entry.ours.removesuffix(".kernel"), names, into, out, entry.index, entry.swapped)


def _split(linear: _Linear, part: str, leaf: np.ndarray) -> list[np.ndarray]:
    """Arrays (in, r), (r, out) or (out,) of each layer there."""
    own = leaf if linear.index is None else leaf[linear.index]
    if part == "magnitude":
        pieces = np.split(own, len(linear.theirs), axis=-1)
    else:
        pieces = list(own) if len(linear.theirs) > 1 else [own]
    if linear.swapped and part != "a":
        pieces = [swapped_halves(piece) for piece in pieces]
    width = linear.into if part == "a" else linear.out
    for piece in pieces:
        if piece.shape[-2 if part == "a" else -1] != width or len(pieces) != len(linear.theirs):
            raise InputError(f"{linear.ours}.{part} is of shape {leaf.shape}, which does not fit the network")
    return pieces


def _joined(part, theirs, given, pieces, rank: int) -> np.ndarray:
    """The leaf of all pieces: layers of a stack, and in each what is fused."""
    like = next(given[layer][theirs] for layer, _ in pieces if layer in given)
    found: dict[int | None, list[np.ndarray]] = {}
    for layer, linear in pieces:
        shape = {"a": (linear.into, rank), "b": (rank, linear.out), "magnitude": (linear.out,)}[part]
        if layer not in given and part == "magnitude":
            raise InputError(f"{layer} is not adapted, and others of {linear.ours} have magnitudes: all must")
        array = given[layer][theirs].T if layer in given else np.zeros(shape, like.dtype)
        if array.shape != shape:
            raise InputError(f"{layer}.{theirs} is of shape {array.T.shape}, and {shape[::-1]} is what fits")
        found.setdefault(linear.index, []).append(swapped_halves(array) if linear.swapped and part != "a" else array)
    layers = []
    for own in found.values():
        fused = np.concatenate(own, axis=-1) if part == "magnitude" else np.stack(own)
        layers.append(own[0] if len(own) == 1 else fused)
    return layers[0] if None in found else np.stack(layers)


def _rank(given, pieces) -> int:
    ranks = {layer: given[layer]["lora_A"].shape[0] for layer, _ in pieces if "lora_A" in given.get(layer, {})}
    if len(set(ranks.values())) != 1:
        raise InputError(f"layers of {pieces[0][1].ours} have ranks of their own, {sorted(set(ranks.values()))}")
    return next(iter(ranks.values()))


def _config(state_dict: StateDict, prefix: str, rank: int, alpha: float) -> dict[str, Any]:
    names = (NAME.fullmatch(name.removeprefix(prefix)) for name in state_dict)
    return {"r": rank, "lora_alpha": alpha, "target_modules": sorted({found[1] for found in names if found})}
