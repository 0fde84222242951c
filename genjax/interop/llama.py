"""Llama weights: genjax's Decoder <-> `transformers.LlamaForCausalLM`.

The map is the table below. Linear weights are (out, in) there and (in, out) here, layers are numbered there and stacked
here, and a tied head is not stored. Rotary pairs lie in halves on both sides (the files of Meta interleave them;
transformers' converter permutes). Arrays are moved, never computed with: both directions are exact. Keys must match.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.errors import InputError

__all__ = ["FIELDS", "StateDict", "from_transformers", "sizes_from_config", "to_transformers"]

StateDict = Mapping[str, np.ndarray]

OUTSIDE = [  # genjax, transformers
    ("embed.embedding", "model.embed_tokens.weight"),
    ("norm.scale", "model.norm.weight"),
]
HEAD = ("head.kernel", "lm_head.weight")
BLOCK = [  # the same, inside a block
    ("attention_norm.scale", "input_layernorm.weight"),
    ("q.kernel", "self_attn.q_proj.weight"),
    ("k.kernel", "self_attn.k_proj.weight"),
    ("v.kernel", "self_attn.v_proj.weight"),
    ("o.kernel", "self_attn.o_proj.weight"),
    ("mlp_norm.scale", "post_attention_layernorm.weight"),
    ("mlp.gate.kernel", "mlp.gate_proj.weight"),
    ("mlp.up.kernel", "mlp.up_proj.weight"),
    ("mlp.down.kernel", "mlp.down_proj.weight"),
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

BUFFER = ".rotary_emb.inv_freq"
"""Old files store the rotary frequencies, which are computed here."""


def from_transformers(state_dict: StateDict) -> dict:
    """Decoder parameters from the state dict of `LlamaForCausalLM`.

    A head that is missing, or equal to the embedding, is tied. Raises InputError where another key is missing or
    unknown, or shapes differ between blocks.
    """
    state_dict = {name: array for name, array in state_dict.items() if not name.endswith(BUFFER)}
    embedding, head = (state_dict.get(name) for name in (OUTSIDE[0][1], HEAD[1]))
    if head is not None and embedding is not None and np.array_equal(embedding, head):
        del state_dict[HEAD[1]]
        head = None
    numbers = [name.removeprefix("model.layers.").split(".")[0] for name in state_dict if "model.layers." in name]
    depth = 1 + max((int(number) for number in numbers if number.isdigit()), default=0)
    rows = OUTSIDE + [HEAD] * (head is not None)
    expected = {theirs for _, theirs in rows} | {name for i in range(depth) for name in _names(i)}
    _match(state_dict, expected, "weights of a LlamaForCausalLM")
    flat = {ours: _turned(ours, np.asarray(state_dict[theirs])) for ours, theirs in rows}
    for row, (ours, _) in enumerate(BLOCK):
        layers = [_turned(ours, np.asarray(state_dict[_names(i)[row]])) for i in range(depth)]
        if len({layer.shape for layer in layers}) > 1:
            raise InputError(f"{ours} has other shapes in other blocks: {sorted({layer.shape for layer in layers})}")
        flat[f"blocks.{ours}"] = np.stack(layers)
    return unflatten_dict(flat, sep=".")


def to_transformers(params: Mapping) -> StateDict:
    """State dict of `LlamaForCausalLM` from Decoder parameters, without a tied head.

    Raises InputError where the parameters are not those of a Decoder.
    """
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    rows = OUTSIDE + [HEAD] * (HEAD[0] in flat)
    expected = {ours for ours, _ in rows} | {f"blocks.{ours}" for ours, _ in BLOCK}
    _match(flat, expected, "parameters of a Decoder")
    state_dict = {theirs: _turned(ours, flat[ours]) for ours, theirs in rows}
    for i in range(len(flat["blocks.q.kernel"])):
        for theirs, (ours, _) in zip(_names(i), BLOCK, strict=True):
            state_dict[theirs] = _turned(ours, flat[f"blocks.{ours}"][i])
    return {name: np.asarray(array, order="C") for name, array in state_dict.items()}


def sizes_from_config(config: Mapping) -> dict[str, int | float | bool]:
    """Constructor arguments of the Decoder that a Llama's `config.json` (or `LlamaConfig.to_dict()`) describes.

    Raises InputError where the file lacks a size, or asks for what the Decoder does not compute.
    """
    missing = [theirs for _, theirs in FIELDS if theirs not in config]
    if missing:
        raise InputError(f"the config of a Llama has no {', '.join(missing)}")
    for name, value in ONLY.items():
        if config.get(name, value) != value:
            raise InputError(f"the config of a Llama has {name} = {config[name]!r}; genjax knows {value!r} only")
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


def _names(layer: int) -> list[str]:
    return [f"model.layers.{layer}.{theirs}" for _, theirs in BLOCK]


def _turned(ours: str, array: np.ndarray) -> np.ndarray:
    return array.T if ours.endswith("kernel") else array


def _match(found: Iterable[str], expected: set[str], what: str) -> None:
    for label, names in [("missing", expected - set(found)), ("unknown", set(found) - expected)]:
        if names:
            more = f" and {len(names) - 6} more" * (len(names) > 6)
            raise InputError(f"these are not {what}: {label} {', '.join(sorted(names)[:6])}{more}")
