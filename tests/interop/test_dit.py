"""The map of DiT weights: exact in both directions, strict about names, and right by diffusers' own numbers."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop import dit
from genjax.interop.trees import read_flat
from genjax.models.dit import DiT

GOLDEN = Path(__file__).parents[1] / "golden" / "dit.safetensors"
MODEL = DiT(channels=3, patch_size=2, depth=3, num_heads=2, head_dim=4, num_classes=5, learned_variance=True)


def random_parameters(model=MODEL, dtype=np.float32):
    """Parameters that are all different numbers."""
    shapes = [((2, 4, 4, 3), np.float32), ((2,), np.float32)] + [((2,), np.int32)] * (model.num_classes > 0)
    abstract = jax.eval_shape(model.init, jax.random.key(0), *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), meta.unbox(abstract)["params"])


def golden():
    """(Inputs and output, weights, config)."""
    arrays, metadata = read_flat(GOLDEN)
    weights = {key.removeprefix("weights."): array for key, array in arrays.items() if key.startswith("weights.")}
    return arrays, weights, json.loads(metadata["config"])


def test_forward_equals_the_golden_outputs_of_diffusers():
    arrays, weights, config = golden()
    model = DiT(**dit.sizes_from_config(config))
    with jax.default_matmul_precision("highest"):
        output = jax.jit(model.apply)(
            {"params": dit.from_diffusers(weights)},
            arrays["x"].transpose(0, 2, 3, 1),
            arrays["timestep"] / 1000,
            arrays["label"].astype(np.int32),
        )
    np.testing.assert_allclose(output, arrays["output"].transpose(0, 2, 3, 1), rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trips_are_the_identity_bit_for_bit(dtype):
    params = random_parameters(dtype=dtype)
    before, after = (
        flatten_dict(tree, sep=".") for tree in (params, dit.from_diffusers(dit.to_diffusers(params, patch_size=2)))
    )
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert after[name].dtype == leaf.dtype
        np.testing.assert_array_equal(after[name], leaf)


def test_the_file_of_diffusers_is_written_as_it_was_read():
    _, weights, config = golden()
    written = dit.to_diffusers(dit.from_diffusers(weights), patch_size=config["patch_size"])
    assert written.keys() == weights.keys()
    for name, array in weights.items():
        assert written[name].flags.c_contiguous
        np.testing.assert_array_equal(written[name], array)


def test_a_config_gives_what_diffusers_computes_and_published_what_was_trained():
    sizes = dit.sizes_from_config(golden()[2])
    assert DiT(**sizes) == DiT(
        channels=3,
        patch_size=2,
        depth=2,
        num_heads=2,
        head_dim=8,
        num_classes=4,
        learned_variance=True,
        frequency_shift=1,
        norm_epsilon=1e-5,
    )
    published = DiT(**sizes | dit.PUBLISHED)
    assert (published.frequency_shift, published.norm_epsilon) == (DiT().frequency_shift, DiT().norm_epsilon)


def test_what_a_config_leaves_out_is_the_default_of_diffusers():
    """Of diffusers 0.42.1; tests/parity asks the class itself."""
    sizes = dit.sizes_from_config({name: golden()[2][name] for name in dit.NEEDED})
    left_out = dict(num_classes=1000, learned_variance=False, frequency_shift=1, norm_epsilon=1e-5)
    assert {name: sizes[name] for name in sizes.keys() - dit.NEEDED.values()} == left_out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation_fn": "geglu"}, "activation_fn = 'geglu'; genjax knows 'gelu-approximate' only"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine = True; genjax knows False only"),
        ({"out_channels": 4}, "has 4 channels out of 3; genjax knows as many, or twice"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        dit.sizes_from_config(golden()[2] | change)


def test_a_config_without_its_sizes_is_refused():
    with pytest.raises(InputError, match="the config of a DiTTransformer2DModel has no num_layers$"):
        dit.sizes_from_config({name: value for name, value in golden()[2].items() if name != "num_layers"})


def test_embeddings_that_differ_between_blocks_are_refused():
    _, weights, _ = golden()
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    with pytest.raises(InputError, match=rf"^{name} is no copy of transformer_blocks\.0\.norm1\.emb\."):
        dit.from_diffusers(weights | {name: weights[name] + 1})


def test_a_missing_copy_is_refused_and_named():
    weights = dict(golden()[1])
    del weights["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"]
    with pytest.raises(InputError, match=r"missing transformer_blocks\.1\.norm1\.emb\.class_embedder\.embed"):
        dit.from_diffusers(weights)


def test_unknown_names_and_other_shapes_are_refused_and_named():
    _, weights, _ = golden()
    with pytest.raises(InputError, match=r"unknown transformer_blocks\.1\.attn2\.to_q\.weight$"):
        dit.from_diffusers(weights | {"transformer_blocks.1.attn2.to_q.weight": np.zeros((16, 16))})
    with pytest.raises(InputError, match=r"^transformer_blocks\.1\.ff\.net\.2\.weight is of shape \(16, 60\)"):
        dit.from_diffusers(weights | {"transformer_blocks.1.ff.net.2.weight": np.zeros((16, 60))})


def test_a_network_without_classes_or_with_other_patches_is_not_exported():
    with pytest.raises(InputError, match=r"parameters of a DiT with classes.*missing y_embedder\.embedding$"):
        dit.to_diffusers(random_parameters(MODEL.clone(num_classes=0)), patch_size=2)
    with pytest.raises(InputError, match="patches of 12 numbers are not 4 pixels high and wide"):
        dit.to_diffusers(random_parameters(), patch_size=4)
