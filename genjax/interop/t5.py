"""T5's encoder: genjax's T5Encoder <-> `transformers.T5EncoderModel`, of T5 v1.1.

The map is the table below. Linear weights are (out, in) there and (in, out) here, layers are numbered there and stacked
here, and the first layer there holds the bias by distance, which all share. Some files hold the embedding twice
(`encoder.embed_tokens`), and it is read once. Arrays are moved, never computed with, and keep their type: both
directions are exact, and every name and shape must fit. All sizes are in the weights but the distance from which on one
bucket is left, which is 128 in all that are released.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop.tables import (
    Entry,
    Row,
    StateDict,
    check_config,
    check_names,
    entries,
    from_state_dict,
    layers_in,
    to_state_dict,
)

__all__ = ["config_for_transformers", "from_transformers", "sizes_from_config", "sizes_from_weights", "to_transformers"]

EMBEDDING = ("embed.embedding", "shared.weight")
TWIN = "encoder.embed_tokens.weight"
DISTANCES = ("distances", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
NORM = ("norm.scale", "encoder.final_layer_norm.weight")
LAYERS = "encoder.block."
BLOCK: list[Row] = [  # w: width, i: of all heads, m: inside the MLP
    ("attention_norm", "layer.0.layer_norm", "w"),
    ("q", "layer.0.SelfAttention.q", "iw"),
    ("k", "layer.0.SelfAttention.k", "iw"),
    ("v", "layer.0.SelfAttention.v", "iw"),
    ("o", "layer.0.SelfAttention.o", "wi"),
    ("mlp_norm", "layer.1.layer_norm", "w"),
    ("mlp.gate", "layer.1.DenseReluDense.wi_0", "mw"),
    ("mlp.up", "layer.1.DenseReluDense.wi_1", "mw"),
    ("mlp.down", "layer.1.DenseReluDense.wo", "wm"),
]
FIELDS = {  # of T5Encoder, and of transformers' config.json
    "vocabulary": "vocab_size",
    "width": "d_model",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_width": "d_ff",
    "buckets": "relative_attention_num_buckets",
}
ONLY = {"feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6}
WHAT = "weights of the encoder of T5 v1.1"


def from_transformers(state_dict: StateDict) -> dict:
    """T5Encoder parameters from the state dict of `T5EncoderModel`.

    Raises InputError where a name is missing or unknown, a shape does not fit, or the two embeddings differ.
    """
    weights = _once(state_dict)
    return from_state_dict(_entries(_sizes(weights)), weights, WHAT)


def to_transformers(params: Mapping) -> StateDict:
    """State dict of `T5EncoderModel`, the embedding once.

    Raises InputError where the parameters are not those of a T5Encoder.
    """
    shapes = {name: np.shape(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    what = "parameters of a T5Encoder"
    check_names(shapes, {entry.ours for entry in _entries(_Sizes(1))}, what)
    depth, width, inner = shapes["blocks.q.kernel"]
    hidden = shapes["blocks.mlp.up.kernel"][-1]
    sizes = _Sizes(depth, shapes[EMBEDDING[0]][0], width, inner, hidden, *shapes[DISTANCES[0]])
    return to_state_dict(_entries(sizes), params, what)


def sizes_from_config(config: Mapping[str, Any]) -> dict[str, int]:
    """Constructor arguments of the T5Encoder that a `config.json` (or `T5Config.to_dict()`) describes.

    Raises InputError where a size is missing, or what is asked for is not computed here.
    """
    check_config(config, FIELDS.values(), ONLY, "encoder of T5 v1.1")
    sizes = {ours: config[theirs] for ours, theirs in FIELDS.items()}
    return sizes | {"max_distance": config.get("relative_attention_max_distance", 128)}


def sizes_from_weights(state_dict: StateDict) -> dict[str, int]:
    """Constructor arguments of the T5Encoder that a state dict fits. Raises InputError as `from_transformers`."""
    sizes = _sizes(_once(state_dict))
    return dict(
        vocabulary=sizes.vocabulary,
        width=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        head_dim=sizes.inner // sizes.heads,
        mlp_width=sizes.hidden,
        buckets=sizes.buckets,
    )


def config_for_transformers(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of the `T5EncoderModel` of a T5Encoder's sizes."""
    return {theirs: sizes[ours] for ours, theirs in FIELDS.items()} | {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "is_encoder_decoder": False,
        "relative_attention_max_distance": sizes.get("max_distance", 128),
        "eos_token_id": 1,
        "pad_token_id": 0,
        **ONLY,
    }


class _Sizes(NamedTuple):
    """Of the arrays; names follow from the depth alone."""

    depth: int
    vocabulary: int = 0
    width: int = 0
    inner: int = 0
    hidden: int = 0
    buckets: int = 0
    heads: int = 0


def _once(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The weights with their embedding once, under its first name."""
    weights = {name: np.asarray(array) for name, array in state_dict.items()}
    twin = weights.pop(TWIN, None)
    if twin is not None and not np.array_equal(weights.setdefault(EMBEDDING[1], twin), twin):
        raise InputError(f"{EMBEDDING[1]} and {TWIN} differ, and in T5 they are one")
    return weights


def _sizes(weights: StateDict) -> _Sizes:
    depth = layers_in(weights, LAYERS)
    check_names(weights, {name for entry in _entries(_Sizes(depth)) for name in entry.theirs}, WHAT)
    first = f"{LAYERS}0."
    names = (NORM[1], f"{first}layer.0.SelfAttention.q.weight", f"{first}layer.1.DenseReluDense.wi_0.weight")
    lengths = (len(np.atleast_1d(weights[name])) for name in (EMBEDDING[1], *names))
    table = weights[DISTANCES[1]]
    if table.ndim != 2:
        raise InputError(f"{DISTANCES[1]} is of shape {table.shape}, and (buckets, heads) is accepted")
    return _Sizes(depth, *lengths, *table.shape)


def _entries(sizes: _Sizes) -> Iterator[Entry]:
    """All leaves of a T5Encoder."""
    letters = dict(w=sizes.width, i=sizes.inner, m=sizes.hidden)
    yield Entry(EMBEDDING[0], (EMBEDDING[1],), (sizes.vocabulary, sizes.width))
    yield Entry(DISTANCES[0], (DISTANCES[1],), (sizes.buckets, sizes.heads))
    for i in range(sizes.depth):
        yield from entries(BLOCK, "blocks.", f"{LAYERS}{i}.", letters, i, biases=False)
    yield Entry(NORM[0], (NORM[1],), (sizes.width,))
