"""The map of autoencoders' weights: exact in both layouts, strict about names, and right by diffusers' own numbers."""

import functools
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop import autoencoder
from genjax.interop.trees import read_flat
from genjax.models.autoencoder import Autoencoder

GOLDEN = Path(__file__).parents[1] / "golden"
COMMON = dict(widths=(8, 12), blocks=1, groups=4)
NETWORKS = {
    "kl": Autoencoder(**COMMON, z_channels=4, code_channels=4, moments=True),
    "vq": Autoencoder(**COMMON, attention_levels=(1,), z_channels=5, code_channels=3),
}
MODELS = NETWORKS | {
    "no convolutions between": Autoencoder(widths=(4, 4, 8), blocks=2, z_channels=16, moments=True, groups=2),
    "no attention, one channel": Autoencoder(
        image_channels=1, widths=(4, 8), blocks=1, middle_attention=False, z_channels=1, code_channels=2, groups=2
    ),
}
LAYOUTS = {
    "diffusers": (autoencoder.to_diffusers, autoencoder.from_diffusers),
    "original": (autoencoder.to_original, autoencoder.from_original),
}


@functools.cache
def random_parameters(name):
    """Parameters that are all different numbers."""
    model = MODELS[name]
    image = jax.ShapeDtypeStruct((1, 4, 4, model.image_channels), np.float32)
    abstract = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), meta.unbox(abstract)["params"])


@functools.cache
def golden(name):
    """(Inputs and outputs, weights)."""
    arrays, _ = read_flat(GOLDEN / f"autoencoder_{name}.safetensors")
    return arrays, {key.removeprefix("weights."): array for key, array in arrays.items() if key.startswith("weights.")}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_sides_equal_the_golden_outputs_of_diffusers(name):
    arrays, weights = golden(name)
    params = {"params": autoencoder.from_diffusers(weights).autoencoder}
    for method, given, expected in (("encode", "image", "encoded"), ("decode", "code", "decoded")):
        with jax.default_matmul_precision("highest"):
            output = NETWORKS[name].apply(params, arrays[given].transpose(0, 2, 3, 1), method=method)
        np.testing.assert_allclose(output, arrays[expected].transpose(0, 2, 3, 1), rtol=0, atol=5e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trips_are_the_identity_bit_for_bit(name, layout, dtype):
    there, back = LAYOUTS[layout]
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_parameters(name))
    codebook = np.arange(12.0).reshape(4, 3)
    weights = back(there(params, codebook))
    np.testing.assert_array_equal(weights.codebook, codebook)
    before, after = (flatten_dict(tree, sep=".") for tree in (params, weights.autoencoder))
    assert before.keys() == after.keys() and back(there(params)).codebook is None
    for key, leaf in before.items():
        assert after[key].dtype == leaf.dtype
        np.testing.assert_array_equal(after[key], leaf)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_of_diffusers_is_written_as_it_was_read(name):
    _, weights = golden(name)
    written = autoencoder.to_diffusers(*autoencoder.from_diffusers(weights))
    assert written.keys() == weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(written[key], array)


def test_names_of_old_files_are_known():
    _, weights = golden("kl")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = weights
    for new, name in old.items():
        renamed = {key.replace(f".{new}.", f".{name}."): array for key, array in renamed.items()}
    assert renamed.keys() != weights.keys()
    both = (autoencoder.from_diffusers(either).autoencoder for either in (weights, renamed))
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_other_networks_in_an_original_file_are_passed_over():
    own = autoencoder.to_original(random_parameters("kl"))
    beside = {"loss.discriminator.main.0.weight": np.ones(3)}
    whole = {f"first_stage_model.{name}": array for name, array in (own | beside).items()}
    whole["model.diffusion_model.out.weight"] = np.ones(2)
    for file in (own | beside, whole):
        read = autoencoder.from_original(file).autoencoder
        jax.tree.map(np.testing.assert_array_equal, read, random_parameters("kl"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_unknown_and_misshapen_arrays_are_refused_and_named(layout):
    there, back = LAYOUTS[layout]
    weights = there(random_parameters("kl"))
    for broken, told in (
        ({name: array for name, array in weights.items() if name != "decoder.conv_out.bias"}, "decoder.conv_out.bias"),
        (weights | {"decoder.more": np.ones(1)}, "unknown decoder.more"),
        (weights | {"encoder.conv_out.weight": np.ones((8, 12, 3, 2))}, "encoder.conv_out.weight is of shape"),
        (weights | {"encoder.conv_in.weight": np.ones(5)}, "encoder.conv_in.weight is of shape"),
        (weights | {autoencoder.CODEBOOK: np.ones(5)}, "a codebook has two axes"),
        ({}, "missing"),
    ):
        with pytest.raises(InputError, match=told):
            back(broken)


def test_parameters_of_another_network_are_refused():
    with pytest.raises(InputError, match="these are not parameters of an Autoencoder"):
        autoencoder.to_diffusers({"dense": {"kernel": np.ones((2, 2))}})
