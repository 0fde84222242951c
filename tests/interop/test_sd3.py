"""The map of SD3 weights: exact in both directions, strict about keys, and right by diffusers' own numbers."""

from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop import sd3
from genjax.interop.trees import read_flat
from genjax.models.mmdit import MMDiT

GOLDEN = Path(__file__).parents[1] / "golden"
UNTOLD = dict(patch_size=2, pos_embed_max_size=7, pos_embed_base_size=4)
SIZES = {
    "one block": dict(depth=1),
    "plain": dict(depth=3, qk_norm=False),
    "dual": dict(depth=4, dual_attention_layers=2),
    "dual but the last": dict(depth=3, dual_attention_layers=2),
    "dual everywhere": dict(depth=3, dual_attention_layers=3),
}


def random_model(**sizes):
    """(MMDiT, parameters that are all different numbers)."""
    model = MMDiT(channels=3, num_heads=2, head_dim=4, **UNTOLD, **sizes)
    shapes = ((2, 4, 4, 3), (2,), (2, 5, 6), (2, 9))
    abstract = jax.eval_shape(model.init, jax.random.key(0), *(jax.ShapeDtypeStruct(s, np.float32) for s in shapes))
    abstract = meta.unbox(abstract)["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)


@pytest.fixture(params=["diffusers", "original"])
def layout(request):
    """(import, export, sizes) of one foreign layout."""
    return tuple(getattr(sd3, f"{verb}_{request.param}") for verb in ("from", "to", "sizes_from"))


@pytest.mark.parametrize("name", ["plain", "rms", "dual"])
def test_forward_equals_the_golden_outputs_of_diffusers(name):
    arrays, _ = read_flat(GOLDEN / f"sd3_{name}.safetensors")
    weights = {key.removeprefix("weights."): array for key, array in arrays.items() if key.startswith("weights.")}
    model = MMDiT(**sd3.sizes_from_diffusers(weights, head_dim=8))
    params = sd3.from_diffusers(weights)
    channels_last = arrays["x"].transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        output = jax.jit(model.apply)(
            {"params": params}, channels_last, arrays["timestep"] / 1000, arrays["context"], arrays["pooled"]
        )
    np.testing.assert_allclose(output, arrays["output"].transpose(0, 2, 3, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trip_is_the_identity_bit_for_bit(layout, sizes, dtype):
    load, dump, _ = layout
    _, params = random_model(**sizes)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    before, after = (flatten_dict(tree, sep=".") for tree in (params, load(dump(params, **UNTOLD))))
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert after[name].dtype == leaf.dtype
        assert np.array_equal(after[name], leaf), name


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_sizes_are_read_off_the_shapes(layout, sizes):
    _, dump, sizes_from = layout
    model, params = random_model(**sizes)
    assert MMDiT(**sizes_from(dump(params, **UNTOLD), head_dim=4)) == model


def test_exported_arrays_lie_in_memory_as_their_shape_says(layout):
    _, dump, _ = layout
    assert all(array.flags.c_contiguous for array in dump(random_model(depth=2)[1], **UNTOLD).values())


def test_other_networks_in_an_original_file_are_passed_over():
    _, params = random_model(depth=2)
    whole = {"first_stage_model.encoder.conv_in.bias": np.zeros(3), **sd3.to_original(params, **UNTOLD)}
    assert flatten_dict(sd3.from_original(whole)).keys() == flatten_dict(params).keys()


def test_a_missing_key_is_refused_and_named():
    state_dict = sd3.to_diffusers(random_model(depth=3)[1], **UNTOLD)
    del state_dict["transformer_blocks.1.attn.to_k.bias"]
    with pytest.raises(InputError, match=r"missing transformer_blocks\.1\.attn\.to_k\.bias$"):
        sd3.from_diffusers(state_dict)


def test_an_unknown_key_is_refused_and_named():
    state_dict = sd3.to_diffusers(random_model(depth=3)[1], **UNTOLD)
    state_dict["transformer_blocks.1.attn.to_q.lora_A.weight"] = np.zeros((2, 8))
    with pytest.raises(InputError, match=r"unknown transformer_blocks\.1\.attn\.to_q\.lora_A\.weight$"):
        sd3.from_diffusers(state_dict)


def test_dual_attention_elsewhere_than_in_the_first_blocks_is_refused():
    state_dict = sd3.to_diffusers(random_model(depth=4, dual_attention_layers=1)[1], **UNTOLD)
    moved = {name.replace("blocks.0.attn2", "blocks.1.attn2"): array for name, array in state_dict.items()}
    with pytest.raises(
        InputError, match=r"missing transformer_blocks\.0\.attn2\..*unknown transformer_blocks\.1\.attn2\."
    ):
        sd3.from_diffusers(moved)


def test_a_position_embedding_that_genjax_does_not_compute_is_refused():
    state_dict = sd3.to_diffusers(random_model(depth=2)[1], **UNTOLD)
    state_dict["pos_embed.pos_embed"] = state_dict["pos_embed.pos_embed"] + 0.02
    with pytest.raises(InputError, match="pos_embed.pos_embed is not the sines and cosines"):
        sd3.from_diffusers(state_dict)


def test_a_position_embedding_in_half_precision_is_accepted():
    model, params = random_model(depth=2)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        state_dict = {name: array.astype(dtype) for name, array in sd3.to_diffusers(params, **UNTOLD).items()}
        assert MMDiT(**sd3.sizes_from_diffusers(state_dict)) == model
        sd3.from_diffusers(state_dict)


def test_blocks_of_other_shapes_are_refused():
    state_dict = sd3.to_diffusers(random_model(depth=3)[1], **UNTOLD)
    state_dict["transformer_blocks.0.ff.net.2.weight"] = np.zeros((8, 31))
    with pytest.raises(
        InputError, match=r"^transformer_blocks\.0\.ff\.net\.2\.weight is of shape \(8, 31\), and \(8, 32\)"
    ):
        sd3.from_diffusers(state_dict)


def test_parameters_of_another_network_are_not_exported():
    _, params = random_model(depth=2)
    with pytest.raises(InputError, match=r"unknown lora\.down"):
        sd3.to_diffusers({**params, "lora": {"down": np.zeros(3)}}, **UNTOLD)
    with pytest.raises(InputError, match=r"missing final_linear\.bias, final_linear\.kernel$"):
        sd3.to_diffusers({name: tree for name, tree in params.items() if name != "final_linear"}, **UNTOLD)
