"""The map of CLIP's text encoder: exact in both directions, strict about names, and right by transformers' numbers."""

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
from genjax.interop import clip
from genjax.interop.trees import read_flat
from genjax.models.clip_text import CLIPText

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORKS = {"clip_text": False, "clip_text_projected": True}
"""Files, and whether the network projects."""
SMALL = dict(vocabulary=9, positions=7, width=8, num_heads=2, mlp_width=12)
MODELS = {
    "stacked": CLIPText(**SMALL, depth=3),
    "one block, projected": CLIPText(**SMALL, depth=1, projection=5),
}


def random_parameters(model, dtype=np.float32):
    """Parameters that are all different numbers."""
    abstract = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), np.int32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), meta.unbox(abstract)["params"])


@functools.cache
def golden(name):
    """({outputs, ...}, weights, gradients, the network)."""
    arrays, metadata = read_flat(GOLDEN / f"{name}.safetensors")
    groups = {}
    for key, array in arrays.items():
        group, _, own = key.partition(".")
        groups.setdefault(group, {})[own] = array
    sizes = clip.sizes_from_config(json.loads(metadata["config"]), projected=NETWORKS[name])
    return arrays["tokens"], groups["outputs"], groups["weights"], groups["gradients"], CLIPText(**sizes)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_and_gradients_are_the_golden_ones_of_transformers(name):
    tokens, outputs, weights, gradients, model = golden(name)

    @functools.partial(jax.grad, has_aux=True)
    def found(params):
        features = model.apply({"params": params}, tokens)
        return sum((feature**2).mean() for feature in features), features

    with jax.default_matmul_precision("highest"):
        ours, features = jax.jit(found)(clip.from_transformers(weights))
    for kind, expected in outputs.items():
        np.testing.assert_allclose(getattr(features, kind), expected, rtol=0, atol=5e-6, err_msg=kind)
    ours, theirs = (flatten_dict(tree, sep=".") for tree in (ours, clip.from_transformers(gradients)))
    assert ours.keys() == theirs.keys()
    for leaf, gradient in ours.items():
        np.testing.assert_allclose(gradient, theirs[leaf], rtol=0, atol=5e-6, err_msg=leaf)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_round_trips_are_the_identity_bit_for_bit(model, dtype):
    params = random_parameters(model, dtype)
    state_dict = clip.to_transformers(params)
    assert all(array.flags.c_contiguous for array in state_dict.values())
    before, after = (flatten_dict(tree, sep=".") for tree in (params, clip.from_transformers(state_dict)))
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert after[name].dtype == leaf.dtype
        np.testing.assert_array_equal(after[name], leaf)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_weights_tell_the_sizes(model):
    sizes = clip.sizes_from_weights(clip.to_transformers(random_parameters(model)), head_dim=4)
    assert CLIPText(**sizes) == model.clone(activation="gelu", end=8)


def test_old_files_that_number_their_positions_and_modules_without_a_prefix_are_read():
    params = random_parameters(MODELS["one block, projected"])
    state_dict = dict(clip.to_transformers(params))
    numbered = state_dict | {"text_model.embeddings.position_ids": np.arange(7)[None]}
    bare = {name.removeprefix("text_model."): array for name, array in numbered.items()}
    for given in (numbered, bare):
        jax.tree.map(np.testing.assert_array_equal, clip.from_transformers(given), params)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text_model.final_layer_norm.bias": None}, r"^these are not weights of CLIP's text encoder.*missing text_m"),
        (
            {"text_model.encoder.layers.1.mlp.fc1.bias": None},
            r"missing text_model\.encoder\.layers\.1\.mlp\.fc1\.bias$",
        ),
        ({"text_projection.bias": np.zeros(9)}, r"unknown text_projection\.bias$"),
        ({"text_model.encoder.layers.2.mlp.fc2.weight": np.zeros((8, 13))}, r"fc2\.weight is of shape \(8, 13\)"),
    ],
)
def test_missing_and_unknown_names_and_other_shapes_are_refused_in_one_sentence(change, says):
    state_dict = {**clip.to_transformers(random_parameters(MODELS["stacked"])), **change}
    with pytest.raises(InputError, match=says):
        clip.from_transformers({name: array for name, array in state_dict.items() if array is not None})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_act": "relu"}, r"hidden_act = 'relu'; genjax knows quick_gelu, gelu"),
        ({"layer_norm_eps": 1e-6}, r"layer_norm_eps = 1e-06; genjax knows 1e-05 only$"),
        ({"hidden_size": None}, r"has no hidden_size$"),
    ],
)
def test_what_a_config_asks_for_beyond_that_is_refused(change, says):
    config = json.loads(read_flat(GOLDEN / "clip_text.safetensors")[1]["config"]) | change
    with pytest.raises(InputError, match=says):
        clip.sizes_from_config({name: value for name, value in config.items() if value is not None}, projected=False)


def test_an_end_that_old_configs_do_not_know_is_the_largest_id():
    config = json.loads(read_flat(GOLDEN / "clip_text.safetensors")[1]["config"])
    assert clip.sizes_from_config(config | {"eos_token_id": 2}, projected=False)["end"] == config["vocab_size"] - 1
    assert clip.sizes_from_config(config | {"eos_token_id": 5}, projected=False)["end"] == 5
