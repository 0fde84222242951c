"""The map of Llama weights: exact in both directions, strict about keys, and right by transformers' own numbers."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.linen import meta
from flax.traverse_util import flatten_dict
from jax.tree_util import Partial

from genjax.errors import InputError
from genjax.interop import llama
from genjax.interop.trees import read_flat
from genjax.keys import row_keys
from genjax.language.decoding import TokenSampler, generate
from genjax.language.losses import next_token_loss
from genjax.models.decoder import Decoder

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = dict(vocabulary=9, width=8, depth=3, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=10)
CONFIG = dict(
    vocab_size=9,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=10,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    hidden_act="silu",
)


def random_params(**changes):
    """Parameters that are all different numbers."""
    tokens = jax.ShapeDtypeStruct((1, 4), np.int32)
    abstract = meta.unbox(jax.eval_shape(Decoder(**SIZES | changes).init, jax.random.key(0), tokens))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grouped", "tied"])
def test_logits_loss_and_greedy_text_are_the_golden_ones_of_transformers(name):
    arrays, metadata = read_flat(GOLDEN / f"decoder_{name}.safetensors")
    weights = {key.removeprefix("weights."): array for key, array in arrays.items() if key.startswith("weights.")}
    model = Decoder(**llama.sizes_from_config(json.loads(metadata["config"])))
    params = llama.from_transformers(weights)
    tokens = arrays["tokens"]
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(model.apply)({"params": params}, tokens)
        network, keys = Partial(model.apply, {"params": params}), row_keys(jax.random.key(0), np.arange(2))
        greedy = generate(
            network, TokenSampler(temperature=0), model.empty_cache(2, 28), tokens, [12, 12], keys, tokens=16, chunk=16
        )
        greedy = np.concatenate(list(greedy), axis=1)
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=1e-5)
    losses, counts = next_token_loss(logits, tokens)
    np.testing.assert_allclose(losses.sum() / counts.sum(), arrays["loss"], rtol=1e-6)
    np.testing.assert_array_equal(greedy, arrays["greedy"])


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"depth": 1}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trip_is_the_identity_bit_for_bit(changes, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(**changes))
    state_dict = llama.to_transformers(params)
    before, after = (flatten_dict(tree, sep=".") for tree in (params, llama.from_transformers(state_dict)))
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert after[name].dtype == leaf.dtype
        assert np.array_equal(after[name], leaf), name
    assert all(array.flags.c_contiguous for array in state_dict.values())


def test_a_head_equal_to_the_embedding_is_tied_and_stored_frequencies_are_passed_over():
    state_dict = dict(llama.to_transformers(random_params(tie_embeddings=True)))
    state_dict["lm_head.weight"] = state_dict["model.embed_tokens.weight"]
    state_dict["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3)
    assert "head" not in llama.from_transformers(state_dict)


def test_a_missing_an_unknown_and_an_odd_array_are_refused_and_named():
    whole = llama.to_transformers(random_params())
    name = "model.layers.1.mlp.up_proj.weight"
    for state_dict, message in [
        ({key: array for key, array in whole.items() if key != name}, rf"missing {name}$"),
        ({**whole, "model.layers.1.self_attn.q_proj.bias": np.zeros(24)}, r"unknown model\.layers\.1\..*q_proj\.bias$"),
        ({**whole, name: np.zeros((11, 8))}, rf"^{name} is of shape \(11, 8\), and \(10, 8\) is what fits"),
    ]:
        with pytest.raises(InputError, match=message):
            llama.from_transformers(state_dict)
    params = random_params()
    del params["norm"]
    with pytest.raises(InputError, match=r"not parameters of a Decoder that genjax knows: missing norm\.scale$"):
        llama.to_transformers(params)


def test_sizes_are_read_off_the_config_of_either_generation():
    expected = Decoder(**SIZES, norm_epsilon=1e-5)
    assert Decoder(**llama.sizes_from_config(CONFIG)) == expected
    old = {"rope_theta": 5e5, "rope_scaling": None}
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    for rope in (old, new):
        assert Decoder(**llama.sizes_from_config(CONFIG | rope)) == expected.clone(rope_theta=5e5)
    plain = {name: value for name, value in CONFIG.items() if name not in ("num_key_value_heads", "head_dim")}
    assert Decoder(**llama.sizes_from_config(plain)) == expected.clone(num_kv_heads=4, head_dim=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "of type 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "type 'yarn'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        llama.sizes_from_config(CONFIG | changes)
    with pytest.raises(InputError, match="has no vocab_size"):
        llama.sizes_from_config({name: value for name, value in CONFIG.items() if name != "vocab_size"})
