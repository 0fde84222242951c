"""CLIP's text encoder: genjax's CLIPText <-> `transformers.CLIPTextModel` and `CLIPTextModelWithProjection`.

The map is the table below. Linear weights are (out, in) there and (in, out) here; layers are numbered there, and here
all but the last are stacked. Names begin with `text_model.` in all files, and not in the module `CLIPTextModel` since
transformers 5: both are read, and the first is written. Old files number their positions (`position_ids`), which is
passed over. Arrays are moved, never computed with, and keep their type: both directions are exact, and every name and
shape must fit.

Weights do not show how many heads there are, nor the activation: `sizes_from_config` reads `config.json`, and
`sizes_from_weights` takes heads of 64, as all released ones have, and for the activation what Stable Diffusion's two
have: quick_gelu at a width of 768 (OpenAI's L), gelu at others (OpenCLIP's bigG).
Of other CLIPs the config has to tell.
"""

import re
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

START = "text_model."
EMBEDDING = ("embed.embedding", f"{START}embeddings.token_embedding.weight")
POSITIONS = ("position_embedding", f"{START}embeddings.position_embedding.weight")
PROJECTION = ("project.kernel", "text_projection.weight")
OUTSIDE: list[Row] = [("norm", f"{START}final_layer_norm", "d")]  # d: width
LAYERS = f"{START}encoder.layers."
BLOCK: list[Row] = [  # m: width inside the MLP
    ("attention_norm", "layer_norm1", "d"),
    ("q", "self_attn.q_proj", "dd"),
    ("k", "self_attn.k_proj", "dd"),
    ("v", "self_attn.v_proj", "dd"),
    ("o", "self_attn.out_proj", "dd"),
    ("mlp_norm", "layer_norm2", "d"),
    ("mlp.fc1", "mlp.fc1", "md"),
    ("mlp.fc2", "mlp.fc2", "dm"),
]
NUMBERS = re.compile(re.escape(START) + r"embeddings\.position_ids")
FIELDS = {  # of CLIPText, and of transformers' config.json
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
LEGACY_END = 2
"""What configs say that were written before the end's id was looked at: the largest id is meant."""
WHAT = "weights of CLIP's text encoder"


def from_transformers(state_dict: StateDict) -> dict:
    """CLIPText parameters from the state dict of transformers' text model, with its projection where it has one.

    Raises InputError where a name is missing or unknown, or a shape does not fit.
    """
    weights = _weights(state_dict)
    return from_state_dict(_entries(_sizes(weights)), weights, WHAT)


def to_transformers(params: Mapping) -> StateDict:
    """State dict of `CLIPTextModel`, or of `CLIPTextModelWithProjection` where the parameters have a projection.

    Raises InputError where the parameters are not those of a CLIPText.
    """
    shapes = {name: np.shape(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    depth = 1 + (shapes.get("blocks.q.bias") or (0,))[0]
    projection = (shapes.get(PROJECTION[0]) or (0, 0))[1]
    what = "parameters of a CLIPText"
    check_names(shapes, {entry.ours for entry in _entries(_Sizes(depth, projection=projection))}, what)
    (vocabulary, width), (positions, _) = shapes[EMBEDDING[0]], shapes[POSITIONS[0]]
    sizes = _Sizes(depth, projection, vocabulary, positions, width, shapes["last_block.mlp.fc1.bias"][0])
    return to_state_dict(_entries(sizes), params, what)


def sizes_from_config(config: Mapping[str, Any], *, projected: bool) -> dict[str, Any]:
    """Constructor arguments of the CLIPText that a `config.json` (or `CLIPTextConfig.to_dict()`) describes.

    The file does not say whether the model projects: `CLIPTextModelWithProjection` does (`projected`). Raises
    InputError where a size is missing, or what is asked for is not computed here.
    """
    what = "text encoder of CLIP"
    check_config(
        config, [*FIELDS.values(), "hidden_act", *["projection_dim"] * projected], {"layer_norm_eps": 1e-5}, what
    )
    if config["hidden_act"] not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"the config of a {what} has hidden_act = {config['hidden_act']!r}; genjax knows {known}")
    end = config.get("eos_token_id", LEGACY_END)
    return {ours: config[theirs] for ours, theirs in FIELDS.items()} | {
        "activation": ACTIVATIONS[config["hidden_act"]],
        "projection": config["projection_dim"] if projected else None,
        "end": config["vocab_size"] - 1 if end == LEGACY_END else end,
    }


def sizes_from_weights(state_dict: StateDict, *, head_dim: int = 64) -> dict[str, Any]:
    """Constructor arguments of the CLIPText that a state dict fits, where no `config.json` tells; see the module.

    Raises InputError where a name is missing or unknown.
    """
    sizes = _sizes(_weights(state_dict))
    return dict(
        vocabulary=sizes.vocabulary,
        positions=sizes.positions,
        width=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.width // head_dim,
        mlp_width=sizes.hidden,
        activation="quick_gelu" if sizes.width == 768 else "gelu",
        projection=sizes.projection or None,
        end=sizes.vocabulary - 1,
    )


def config_for_transformers(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of the text model of a CLIPText's sizes."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    projected = sizes["projection"] is not None
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return {theirs: sizes[ours] for ours, theirs in FIELDS.items()} | {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "hidden_act": names[sizes["activation"]],
        "projection_dim": sizes["projection"] if projected else sizes["width"],
        "layer_norm_eps": 1e-5,
        "eos_token_id": sizes["end"],
        "bos_token_id": sizes["end"] - 1,
        "pad_token_id": sizes["end"],
    }


class _Sizes(NamedTuple):
    """Of the arrays; names follow from the depth, and from whether there is a projection."""

    depth: int
    projection: int = 0
    vocabulary: int = 0
    positions: int = 0
    width: int = 0
    hidden: int = 0


def _weights(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The weights by the names that files have."""
    inside = not any(name.startswith(START) for name in state_dict)
    named = {START * (inside and name != PROJECTION[1]) + name: array for name, array in state_dict.items()}
    return {name: np.asarray(array) for name, array in named.items() if not NUMBERS.fullmatch(name)}


def _sizes(weights: StateDict) -> _Sizes:
    depth = layers_in(weights, LAYERS)
    projection = len(np.atleast_1d(weights[PROJECTION[1]])) if PROJECTION[1] in weights else 0
    check_names(weights, {name for entry in _entries(_Sizes(depth, projection)) for name in entry.theirs}, WHAT)
    names = (EMBEDDING[1], POSITIONS[1], f"{START}final_layer_norm.weight", f"{LAYERS}0.mlp.fc1.bias")
    return _Sizes(depth, projection, *(len(np.atleast_1d(weights[name])) for name in names))


def _entries(sizes: _Sizes) -> Iterator[Entry]:
    """All leaves of a CLIPText."""
    letters = dict(d=sizes.width, m=sizes.hidden)
    yield Entry(EMBEDDING[0], (EMBEDDING[1],), (sizes.vocabulary, sizes.width))
    yield Entry(POSITIONS[0], (POSITIONS[1],), (sizes.positions, sizes.width))
    for i in range(sizes.depth - 1):
        yield from entries(BLOCK, "blocks.", f"{LAYERS}{i}.", letters, i)
    yield from entries(BLOCK, "last_block.", f"{LAYERS}{sizes.depth - 1}.", letters)
    yield from entries(OUTSIDE, "", "", letters)
    if sizes.projection:
        yield Entry(PROJECTION[0], (PROJECTION[1],), (sizes.projection, sizes.width), "linear")
