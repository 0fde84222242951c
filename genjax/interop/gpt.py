"""GPT weights: genjax's GPT <-> taming-transformers' `mingpt.GPT`, which is minGPT's of 2020.

The map is the table below. Linear weights are (out, in) there and (in, out) here, blocks are numbered there and stacked
here, positions have an axis of one sample there. The causal masks that the files store are computed here, and passed
over. A file of a second stage (`Net2NetTransformer`) holds the same under `transformer.`, beside other networks, which
are passed over too. The head is a matrix of its own. Both directions are exact, and every name and shape must fit.

The weights do not show the number of heads: it is in taming's config (`n_head`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop.tables import Entry, Row, StateDict, check_names, entries, from_state_dict, layers_in, to_state_dict

__all__ = ["IN_SECOND_STAGE", "from_taming", "to_taming"]

IN_SECOND_STAGE = "transformer."
"""What the names begin with in a file of a second stage."""

OUTSIDE: list[Row] = [("norm", "ln_f", "d")]  # d: width
BLOCK: list[Row] = [  # m: width inside the MLP
    ("attention_norm", "ln1", "d"),
    ("q", "attn.query", "dd"),
    ("k", "attn.key", "dd"),
    ("v", "attn.value", "dd"),
    ("o", "attn.proj", "dd"),
    ("mlp_norm", "ln2", "d"),
    ("mlp.fc1", "mlp.0", "md"),
    ("mlp.fc2", "mlp.2", "dm"),
]
POSITIONS = ("position_embedding", "pos_emb")
MASK = re.compile(r"blocks\.\d+\.attn\.mask")

WHAT = "weights of taming's GPT"


def from_taming(state_dict: StateDict) -> dict:
    """GPT parameters from the state dict of taming's GPT, or of a second stage that has one.

    Raises InputError where a name is missing or unknown, or a shape does not fit.
    """
    own = {name: array for name, array in state_dict.items() if name.startswith(IN_SECOND_STAGE)}
    if own:
        state_dict = {name.removeprefix(IN_SECOND_STAGE): array for name, array in own.items()}
    weights = {name: np.asarray(array) for name, array in state_dict.items() if not MASK.fullmatch(name)}
    depth = layers_in(weights, "blocks.")
    check_names(weights, {name for entry in _entries(_Sizes(depth)) for name in entry.theirs}, WHAT)
    places = weights[POSITIONS[1]]
    if places.ndim != 3 or len(places) != 1:
        raise InputError(f"{POSITIONS[1]} is of shape {places.shape}, and (1, positions, width) is accepted")
    weights[POSITIONS[1]] = places[0]
    names = ("ln_f.weight", "tok_emb.weight", POSITIONS[1], "blocks.0.mlp.0.bias")
    width, vocabulary, positions, hidden = (len(np.atleast_1d(weights[name])) for name in names)
    return from_state_dict(_entries(_Sizes(depth, width, vocabulary, positions, hidden)), weights, WHAT)


def to_taming(params: Mapping, *, prefix: str = "") -> StateDict:
    """State dict of taming's GPT from parameters of a GPT whose head is its own; every name begins with `prefix`.

    Raises InputError where the parameters are not those of such a GPT.
    """
    shapes = {name: np.shape(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    what = "parameters of a GPT with a head of its own"
    check_names(shapes, {entry.ours for entry in _entries(_Sizes(1))}, what)
    depth, hidden = shapes["blocks.mlp.fc1.bias"]
    sizes = _Sizes(depth, shapes["norm.scale"][0], shapes["embed.embedding"][0], shapes[POSITIONS[0]][0], hidden)
    state_dict = to_state_dict(_entries(sizes), params, what)
    state_dict[POSITIONS[1]] = state_dict[POSITIONS[1]][None]
    return {prefix + name: array for name, array in state_dict.items()}


class _Sizes(NamedTuple):
    """Of the arrays; names follow from the depth alone."""

    depth: int
    width: int = 0
    vocabulary: int = 0
    positions: int = 0
    hidden: int = 0


def _entries(sizes: _Sizes) -> Iterator[Entry]:
    """All leaves of a GPT."""
    letters = dict(d=sizes.width, m=sizes.hidden)
    table = sizes.vocabulary, sizes.width
    yield Entry("embed.embedding", ("tok_emb.weight",), table)
    yield Entry(POSITIONS[0], (POSITIONS[1],), (sizes.positions, sizes.width))
    yield from entries(OUTSIDE, "", "", letters)
    yield Entry("head.kernel", ("head.weight",), table, "linear")
    for i in range(sizes.depth):
        yield from entries(BLOCK, "blocks.", f"blocks.{i}.", letters, i)
