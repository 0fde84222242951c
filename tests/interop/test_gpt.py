"""The map of GPT weights: exact in both directions, strict about names, and right by transformers' own numbers."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.errors import InputError
from genjax.interop import gpt
from genjax.interop.trees import read_flat
from genjax.language.losses import next_token_loss
from genjax.models.gpt import GPT

GOLDEN = Path(__file__).parents[1] / "golden" / "gpt.safetensors"
MODEL = GPT(vocabulary=9, positions=7, width=8, depth=3, num_heads=2, mlp_width=12)


def random_parameters(model=MODEL, dtype=np.float32):
    """Parameters that are all different numbers."""
    abstract = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), np.int32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), meta.unbox(abstract)["params"])


def golden():
    """(Tokens and outputs, weights, gradients, the network)."""
    arrays, metadata = read_flat(GOLDEN)
    weights, gradients = (
        {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        for prefix in ("weights.", "gradients.")
    )
    config = json.loads(metadata["config"])
    assert config["activation_function"] == "gelu" and not config["tie_word_embeddings"]
    theirs = {"vocabulary": "vocab_size", "positions": "n_positions", "width": "n_embd", "depth": "n_layer"}
    sizes = {ours: config[name] for ours, name in theirs.items()}
    return arrays, weights, gradients, GPT(**sizes, num_heads=config["n_head"])


def test_logits_loss_and_gradients_are_the_golden_ones_of_transformers():
    arrays, weights, gradients, model = golden()
    tokens = arrays["tokens"]

    @jax.jit
    def found(params):
        def loss(params):
            logits = model.apply({"params": params}, tokens)
            losses, counts = next_token_loss(logits, tokens)
            return losses.sum() / counts.sum(), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        (loss, logits), ours = found(gpt.from_taming(weights))
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(loss, arrays["loss"], rtol=1e-6)
    ours, theirs = (flatten_dict(tree, sep=".") for tree in (ours, gpt.from_taming(gradients)))
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, theirs[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("prefix", ["", gpt.IN_SECOND_STAGE])
def test_round_trips_are_the_identity_bit_for_bit(dtype, prefix):
    params = random_parameters(dtype=dtype)
    state_dict = gpt.to_taming(params, prefix=prefix)
    assert all(array.flags.c_contiguous for array in state_dict.values())
    before, after = (flatten_dict(tree, sep=".") for tree in (params, gpt.from_taming(state_dict)))
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert after[name].dtype == leaf.dtype
        np.testing.assert_array_equal(after[name], leaf)


def test_a_file_is_written_as_it_was_read():
    _, weights, _, _ = golden()
    written = gpt.to_taming(gpt.from_taming(weights))
    assert written.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(written[name], array)


def test_masks_and_the_other_networks_of_a_second_stage_are_passed_over():
    params = random_parameters()
    masks = {f"blocks.{i}.attn.mask": np.tril(np.ones((1, 1, 7, 7), np.float32)) for i in range(3)}
    second_stage = {f"transformer.{name}": array for name, array in {**gpt.to_taming(params), **masks}.items()}
    second_stage |= {"first_stage_model.quant_conv.bias": np.zeros(3), "permuter.forward_shuffle_idx": np.arange(4)}
    for state_dict in ({**gpt.to_taming(params), **masks}, second_stage):
        jax.tree.map(np.testing.assert_array_equal, gpt.from_taming(state_dict), params)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ln_f.bias": None}, r"^these are not weights of taming's GPT that genjax knows: missing ln_f\.bias$"),
        ({"blocks.1.attn.query.bias": None}, r"missing blocks\.1\.attn\.query\.bias$"),
        ({"head.bias": np.zeros(9)}, r"unknown head\.bias$"),
        ({"blocks.0.attn.relative": np.zeros(9)}, r"unknown blocks\.0\.attn\.relative$"),
        ({"blocks.2.mlp.2.weight": np.zeros((8, 13))}, r"^blocks\.2\.mlp\.2\.weight is of shape \(8, 13\)"),
        ({"pos_emb": np.zeros((7, 8))}, r"^pos_emb is of shape \(7, 8\), and \(1, positions, width\) is accepted$"),
        ({"pos_emb": np.zeros((1, 7, 9))}, r"^pos_emb is of shape \(7, 9\)"),
    ],
)
def test_missing_and_unknown_names_and_other_shapes_are_refused_in_one_sentence(change, says):
    state_dict = {**gpt.to_taming(random_parameters()), **change}
    with pytest.raises(InputError, match=says):
        gpt.from_taming({name: array for name, array in state_dict.items() if array is not None})


def test_a_tied_head_is_not_written_to_a_layout_that_has_none():
    params = random_parameters(MODEL.clone(tie_embeddings=True))
    with pytest.raises(InputError, match=r"parameters of a GPT with a head of its own.*missing head\.kernel$"):
        gpt.to_taming(params)
