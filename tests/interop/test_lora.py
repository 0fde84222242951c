"""Adapters by peft's names: exact in both directions, strict about names, right by what they do to a matrix."""

import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.adapters.lora import LoRA
from genjax.errors import InputError
from genjax.interop import lora, sd3
from genjax.models.mmdit import MMDiT

MODEL = MMDiT(channels=3, num_heads=2, head_dim=4, depth=4, dual_attention_layers=2, pos_embed_max_size=7,
              pos_embed_base_size=4)  # fmt: skip
KINDS = {
    "attention": LoRA(rank=2, targets=("*attn*.qkv", "*attn*.proj")),
    "everything, decomposed": LoRA(rank=3, alpha=5.0, decomposed=True),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
prefixes = pytest.mark.parametrize("prefix", [lora.IN_DIFFUSERS, lora.IN_PEFT])


def random(tree, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), tree)


@functools.cache
def params():
    shapes = ((1, 4, 4, 3), (1,), (1, 5, 6), (1, 9))
    inputs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return random(meta.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), *inputs))["params"])


def table():
    return sd3.table_for_diffusers(params(), patch_size=2)


@functools.cache
def adapter(kind, dtype=np.float32):
    """(LoRA without what has no adapter in this table: patches are a convolution there; an adapter.)"""
    names = sorted({name.rpartition(".")[0] for name in flatten_dict(params(), sep=".") if name.endswith("kernel")})
    own = KINDS[kind]
    if own.targets == ("*",):
        own = LoRA(**{**vars(own), "targets": tuple(name for name in names if name != "x_embedder")})
    return own, random(jax.eval_shape(own.init, jax.random.key(0), params()), dtype)


@prefixes
@every_kind
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trips_are_the_identity_bit_for_bit(kind, prefix, dtype):
    _, own = adapter(kind, dtype)
    state_dict = lora.to_state_dict(table(), own, prefix)
    assert all(name.startswith(prefix) and array.flags.c_contiguous for name, array in state_dict.items())
    before, after = (flatten_dict(tree, sep=".") for tree in (own, lora.from_state_dict(table(), state_dict, prefix)))
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert after[name].dtype == leaf.dtype
        np.testing.assert_array_equal(after[name], leaf, err_msg=name)
    again = lora.to_state_dict(table(), lora.from_state_dict(table(), state_dict, prefix), prefix)
    jax.tree.map(np.testing.assert_array_equal, again, state_dict)


@every_kind
def test_each_matrix_there_changes_as_it_does_here(kind):
    own, arrays = adapter(kind)
    state_dict = lora.to_state_dict(table(), arrays)
    before = sd3.to_diffusers(params(), patch_size=2, pos_embed_max_size=7, pos_embed_base_size=4)
    adapted = own.adapted(params(), arrays)
    after = sd3.to_diffusers(adapted, patch_size=2, pos_embed_max_size=7, pos_embed_base_size=4)
    for name, weight in before.items():
        start = lora.IN_DIFFUSERS + name.removesuffix(".weight")
        if f"{start}.lora_A.weight" not in state_dict:
            np.testing.assert_array_equal(after[name], weight)
            continue
        expected = weight + own.scale * state_dict[f"{start}.lora_B.weight"] @ state_dict[f"{start}.lora_A.weight"]
        if own.decomposed:
            norm = np.linalg.norm(expected, axis=1, keepdims=True)
            expected *= state_dict[f"{start}.lora_magnitude_vector"][:, None] / norm
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=2e-5, err_msg=name)


def test_layers_and_matrices_that_a_file_does_not_adapt_do_not_change():
    own, arrays = adapter("attention")
    whole = lora.to_state_dict(table(), arrays)
    part = {
        name: array
        for name, array in whole.items()
        if name.startswith("transformer.transformer_blocks.2.attn.to_q.") or ".3.attn.to_out.0." in name
    }
    assert len(part) == 4
    found = own.adapted(params(), lora.from_state_dict(table(), part))
    before, after = (
        sd3.to_diffusers(tree, patch_size=2, pos_embed_max_size=7, pos_embed_base_size=4) for tree in (params(), found)
    )
    changed = {name for name, array in before.items() if not np.array_equal(array, after[name])}
    assert changed == {"transformer_blocks.2.attn.to_q.weight", "transformer_blocks.3.attn.to_out.0.weight"}


Q = "transformer.transformer_blocks.2.attn.to_q"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{Q}.lora_B.weight": None}, r"transformer_blocks\.2\.attn\.to_q has lora_A alone; lora_A and lora_B belong"),
        ({f"{Q}.lora_A.weight": np.zeros((2, 7))}, r"to_q\.lora_A is of shape \(2, 7\), and \(2, 8\) is what fits$"),
        (
            {f"{Q}.lora_A.weight": np.zeros((3, 8)), f"{Q}.lora_B.weight": np.zeros((8, 3))},
            r"^layers of blocks\.image\.attn\.qkv have ranks of their own, \[2, 3\]$",
        ),
        ({"transformer.transformer_blocks.9.attn.to_q.lora_A.weight": np.zeros((2, 8))}, r"that the network lacks: tr"),
        ({"text_encoder.q.lora_A.weight": np.zeros((2, 8))}, r"^text_encoder\.q\.lora_A\.weight is not of an adapter"),
        ({f"{Q}.alpha": np.zeros(())}, r"to_q\.alpha is not of an adapter of low rank"),
        (
            {f"{Q}.lora_magnitude_vector": np.zeros(8)},
            r"has lora_A, lora_B(, lora_magnitude_vector)? alone; .* to all$",
        ),
    ],
)
def test_what_does_not_belong_is_refused_in_one_sentence(change, says):
    state_dict = lora.to_state_dict(table(), adapter("attention")[1]) | change
    with pytest.raises(InputError, match=says):
        lora.from_state_dict(table(), {name: array for name, array in state_dict.items() if array is not None})


def test_an_adapter_of_another_network_is_refused():
    _, arrays = adapter("attention")
    with pytest.raises(InputError, match=r"^the adapter has layers that the network lacks: other\.a, other\.b$"):
        lora.to_state_dict(table(), arrays | {"other": {"a": np.zeros((8, 2)), "b": np.zeros((2, 8))}})
    narrow = {"final_linear": {"a": np.zeros((9, 2)), "b": np.zeros((2, 12))}}
    with pytest.raises(InputError, match=r"^final_linear\.a is of shape \(9, 2\), which does not fit the network$"):
        lora.to_state_dict(table(), narrow)


def test_metadata_tell_how_strongly_an_adapter_acts():
    state_dict = lora.to_state_dict(table(), adapter("attention")[1])
    metadata = lora.metadata_for_diffusers(state_dict, 2, 5.0, use_rslora=True)
    fields = lora.scale_from_metadata(metadata, 2)
    assert LoRA(**fields) == LoRA(rank=2, alpha=5.0, rank_stabilised=True)
    assert lora.scale_from_metadata({}, 4) == dict(rank=4, alpha=4.0, rank_stabilised=False, decomposed=False)
    told = json.loads(metadata[lora.METADATA])
    bare = {lora.METADATA: json.dumps({name.removeprefix("transformer."): value for name, value in told.items()})}
    assert lora.scale_from_metadata(bare, 2) == fields
    assert "transformer_blocks.2.attn.to_q" in told["transformer.target_modules"]
    assert lora.scale_from_metadata(lora.metadata_for_diffusers(state_dict, 2, 5.0, use_dora=True), 2)["decomposed"]
    for name in ("alpha_pattern", "rank_pattern"):
        with pytest.raises(InputError, match=f"the adapter has {name}, of layers that act otherwise than the rest"):
            lora.scale_from_metadata(lora.metadata_for_diffusers(state_dict, 2, 5.0, **{name: {"to_q": 4}}), 2)
    with pytest.raises(InputError, match="lora_adapter_metadata of the file is not JSON"):
        lora.scale_from_metadata({lora.METADATA: "{"}, 2)
    assert lora.IN_PEFT == "base_model.model."  # as peft's files have it
    config = lora.config_for_peft(lora.to_state_dict(table(), adapter("attention")[1], lora.IN_PEFT), 2, 5.0)
    assert config["peft_type"] == "LORA" and config["r"] == 2 and config["lora_alpha"] == 5.0
    assert config["target_modules"] == told["transformer.target_modules"]
