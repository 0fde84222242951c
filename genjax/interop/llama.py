"""Llama weights: genjax's Decoder <-> `transformers.LlamaForCausalLM`.

The map is the table below. Linear weights are (out, in) there and (in, out) here, layers are numbered there and stacked
here, and a tied head is not stored. Rotary pairs lie in halves on both sides (the files of Meta interleave them;
transformers' converter permutes). Arrays are moved, never computed with: both directions are exact. Keys must match.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

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

__all__ = ["FIELDS", "from_transformers", "sizes_from_config", "to_transformers"]

EMBEDDING = ("embed.embedding", "model.embed_tokens.weight")
HEAD = ("head.kernel", "lm_head.weight")
OUTSIDE: list[Row] = [("norm", "model.norm", "d")]
LAYERS = "model.layers."
BLOCK: list[Row] = [  # d: width, q: of all heads of queries, k: of keys, m: inside the MLP
    ("attention_norm", "input_layernorm", "d"),
    ("q", "self_attn.q_proj", "qd"),
    ("k", "self_attn.k_proj", "kd"),
    ("v", "self_attn.v_proj", "kd"),
    ("o", "self_attn.o_proj", "dq"),
    ("mlp_norm", "post_attention_layernorm", "d"),
    ("mlp.gate", "mlp.gate_proj", "md"),
    ("mlp.up", "mlp.up_proj", "md"),
    ("mlp.down", "mlp.down_proj", "dm"),
]
FIELDS = [  # of the Decoder, and of transformers' config.json
    ("vocabulary", "vocab_size"),
    ("width", "hidden_size"),
    ("depth", "num_hidden_layers"),
    ("num_heads", "num_attention_heads"),
    ("mlp_width", "intermediate_size"),
    ("norm_epsilon", "rms_norm_eps"),
    ("tie_embeddings", "tie_word_embeddings"),
]
ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""What the Decoder computes where transformers' config has a choice."""

WHAT = "weights of a LlamaForCausalLM"
BUFFER = ".rotary_emb.inv_freq"
"""Old files store the rotary frequencies, which are computed here."""


def from_transformers(state_dict: StateDict) -> dict:
    """Decoder parameters from the state dict of `LlamaForCausalLM`.

    A head that is missing, or equal to the embedding, is tied. Raises InputError where another name is missing or
    unknown, or a shape does not fit.
    """
    weights = {name: state_dict[name] for name in state_dict if not name.endswith(BUFFER)}
    if EMBEDDING[1] in weights and np.array_equal(weights[EMBEDDING[1]], weights.get(HEAD[1])):
        del weights[HEAD[1]]
    named = _Sizes(layers_in(weights, LAYERS), HEAD[1] in weights)
    check_names(weights, {name for entry in _entries(named) for name in entry.theirs}, WHAT)
    names = (f"{LAYERS}0.self_attn.{name}_proj.weight" for name in ("q", "k"))
    names = (EMBEDDING[1], "model.norm.weight", *names, f"{LAYERS}0.mlp.up_proj.weight")
    return from_state_dict(_entries(_Sizes(*named[:2], *(len(weights[name]) for name in names))), weights, WHAT)


def to_transformers(params: Mapping) -> StateDict:
    """State dict of `LlamaForCausalLM` from Decoder parameters, without a tied head.

    Raises InputError where the parameters are not those of a Decoder.
    """
    shapes = {name: np.shape(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    own_head = HEAD[0] in shapes
    what = "parameters of a Decoder"
    check_names(shapes, {entry.ours for entry in _entries(_Sizes(1, own_head))}, what)
    depth, width, queries = shapes["blocks.q.kernel"]
    keys, hidden = (shapes[f"blocks.{name}.kernel"][-1] for name in ("k", "mlp.up"))
    sizes = _Sizes(depth, own_head, shapes[EMBEDDING[0]][0], width, queries, keys, hidden)
    return to_state_dict(_entries(sizes), params, what)


def sizes_from_config(config: Mapping) -> dict[str, int | float | bool]:
    """Constructor arguments of the Decoder that a Llama's `config.json` (or `LlamaConfig.to_dict()`) describes.

    Raises InputError where the file lacks a size, or asks for what the Decoder does not compute.
    """
    check_config(config, [theirs for _, theirs in FIELDS], ONLY, "Llama")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}  # since and before transformers 5
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise InputError(f"the config of a Llama has rotary positions of type {kind!r}; genjax knows 'default' only")
    sizes = {ours: config[theirs] for ours, theirs in FIELDS}
    return sizes | {
        "num_kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "rope_theta": float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
    }


class _Sizes(NamedTuple):
    """Of the arrays; names follow from the first two."""

    depth: int
    own_head: bool
    vocabulary: int = 0
    width: int = 0
    queries: int = 0
    keys: int = 0
    hidden: int = 0


def _entries(sizes: _Sizes) -> Iterator[Entry]:
    """All leaves of a Decoder."""
    letters = dict(d=sizes.width, q=sizes.queries, k=sizes.keys, m=sizes.hidden)
    table = sizes.vocabulary, sizes.width
    yield Entry(EMBEDDING[0], (EMBEDDING[1],), table)
    yield from entries(OUTSIDE, "", "", letters, biases=False)
    if sizes.own_head:
        yield Entry(HEAD[0], (HEAD[1],), table, "linear")
    for i in range(sizes.depth):
        yield from entries(BLOCK, "blocks.", f"{LAYERS}{i}.", letters, i, biases=False)
