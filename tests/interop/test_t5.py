"""The map of T5's encoder: exact in both directions, strict about names, and right by transformers' own numbers."""

import functools
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop import t5
from genjax.interop.trees import read_flat
from genjax.models.t5_encoder import T5Encoder

GOLDEN = Path(__file__).parents[1] / "golden/t5_encoder.safetensors"
MODEL = T5Encoder(vocabulary=9, width=8, depth=3, num_heads=2, head_dim=3, mlp_width=12, buckets=8)


def random_parameters(dtype=np.float32):
    """Parameters that are all different numbers."""
    abstract = jax.eval_shape(MODEL.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), np.int32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), meta.unbox(abstract)["params"])


def config():
    return json.loads(read_flat(GOLDEN)[1]["config"])


def test_features_and_gradients_are_the_golden_ones_of_transformers():
    arrays, _ = read_flat(GOLDEN)
    weights, gradients = (
        {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        for prefix in ("weights.", "gradients.")
    )
    model = T5Encoder(**t5.sizes_from_config(config()))

    @functools.partial(jax.grad, has_aux=True)
    def found(params):
        features = model.apply({"params": params}, arrays["tokens"])
        return (features**2).mean(), features

    with jax.default_matmul_precision("highest"):
        ours, features = jax.jit(found)(t5.from_transformers(weights))
    np.testing.assert_allclose(features, arrays["outputs.features"], rtol=0, atol=5e-6)
    ours, theirs = (flatten_dict(tree, sep=".") for tree in (ours, t5.from_transformers(gradients)))
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, theirs[name], rtol=0, atol=5e-6, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trips_are_the_identity_bit_for_bit(dtype):
    params = random_parameters(dtype)
    state_dict = t5.to_transformers(params)
    assert all(array.flags.c_contiguous for array in state_dict.values())
    before, after = (flatten_dict(tree, sep=".") for tree in (params, t5.from_transformers(state_dict)))
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert after[name].dtype == leaf.dtype
        np.testing.assert_array_equal(after[name], leaf)


def test_weights_tell_the_sizes():
    assert T5Encoder(**t5.sizes_from_weights(t5.to_transformers(random_parameters()))) == MODEL


def test_an_embedding_that_a_file_holds_twice_is_read_once():
    params = random_parameters()
    state_dict = dict(t5.to_transformers(params))
    twin = {"encoder.embed_tokens.weight": state_dict["shared.weight"]}
    alone = {name: array for name, array in state_dict.items() if name != "shared.weight"} | twin
    for given in (state_dict | twin, alone):
        jax.tree.map(np.testing.assert_array_equal, t5.from_transformers(given), params)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoder.final_layer_norm.weight": None}, r"^these are not weights of the encoder of T5 v1\.1.*missing enc"),
        ({"encoder.block.2.layer.1.DenseReluDense.wo.weight": None}, r"missing encoder\.block\.2\.layer\.1\.Dense"),
        ({"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": np.zeros((8, 2))}, r"unknown enc"),
        ({"decoder.final_layer_norm.weight": np.zeros(8)}, r"unknown decoder\.final_layer_norm\.weight$"),
        ({"encoder.embed_tokens.weight": np.zeros((9, 8))}, r"^shared\.weight and encoder\.embed_tokens\.weight diff"),
        ({"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": np.zeros(16)}, r"\(buckets, heads\)"),
        ({"encoder.block.1.layer.0.SelfAttention.o.weight": np.zeros((8, 7))}, r"o\.weight is of shape \(8, 7\)"),
    ],
)
def test_missing_and_unknown_names_and_other_shapes_are_refused_in_one_sentence(change, says):
    state_dict = {**t5.to_transformers(random_parameters()), **change}
    with pytest.raises(InputError, match=says):
        t5.from_transformers({name: array for name, array in state_dict.items() if array is not None})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"feed_forward_proj": "relu"}, r"feed_forward_proj = 'relu'; genjax knows 'gated-gelu' only$"),
        ({"d_kv": None}, r"^the config of a encoder of T5 v1\.1 has no d_kv$"),
    ],
)
def test_what_a_config_asks_for_beyond_that_is_refused(change, says):
    changed = {name: value for name, value in (config() | change).items() if value is not None}
    with pytest.raises(InputError, match=says):
        t5.sizes_from_config(changed)
