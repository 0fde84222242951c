"""LoRA: nothing changes at first, what changes has a low rank, and only what is named changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.adapters.lora import LoRA
from genjax.errors import InputError
from genjax.models.mmdit import MMDiT

RNG = np.random.default_rng(0)
PARAMS = {
    "blocks": {  # three layers, stacked
        "attn": {
            "qkv": {"kernel": RNG.normal(size=(3, 8, 18)).astype(np.float32), "bias": np.zeros((3, 18), np.float32)},
            "proj": {"kernel": RNG.normal(size=(3, 6, 8)).astype(np.float32)},
        }
    },
    "head": {"kernel": RNG.normal(size=(8, 5)).astype(np.float32)},
    "embed": {"embedding": RNG.normal(size=(9, 8)).astype(np.float32)},
}
KINDS = {
    "lora": LoRA(rank=2),
    "rank-stabilised": LoRA(rank=4, alpha=6.0, rank_stabilised=True),
    "dora": LoRA(rank=2, decomposed=True),
}
every_kind = pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)


def trained(lora, params=PARAMS):
    """An adapter that is not a fresh one."""
    fresh = lora.init(jax.random.key(0), params)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), fresh)


@every_kind
def test_a_fresh_adapter_changes_nothing(lora):
    found = lora.adapted(PARAMS, lora.init(jax.random.key(0), PARAMS))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=3e-7), found, PARAMS)


def test_a_change_is_scale_times_the_product_of_each_matrix():
    for lora, scale in ((LoRA(rank=2, alpha=3.0), 1.5), (LoRA(rank=4, alpha=6.0, rank_stabilised=True), 3.0)):
        assert lora.scale == scale
        adapter = trained(lora)
        found = lora.adapted(PARAMS, adapter)
        for layer in range(3):
            a, b = (adapter["blocks"]["attn"]["qkv"][part][layer] for part in "ab")
            expected = PARAMS["blocks"]["attn"]["qkv"]["kernel"][layer] + scale * np.concatenate(
                [a[piece] @ b[piece] for piece in range(3)], axis=1
            )
            np.testing.assert_allclose(found["blocks"]["attn"]["qkv"]["kernel"][layer], expected, rtol=1e-5, atol=1e-5)
        a, b = (adapter["head"][part] for part in "ab")
        np.testing.assert_allclose(found["head"]["kernel"], PARAMS["head"]["kernel"] + scale * a @ b, atol=1e-5)


def test_a_change_has_the_rank_that_is_asked_for():
    lora = LoRA(rank=2)
    found = lora.adapted(PARAMS, trained(lora))
    for name in ("qkv", "proj"):
        changes = np.asarray(found["blocks"]["attn"][name]["kernel"]) - PARAMS["blocks"]["attn"][name]["kernel"]
        for change in np.split(changes, 3, axis=-1) if name == "qkv" else [changes]:
            assert (np.linalg.matrix_rank(change, tol=1e-4) == 2).all()


def test_columns_of_dora_have_the_norms_that_are_learned():
    lora = KINDS["dora"]
    adapter = trained(lora)
    found = flatten_dict(lora.adapted(PARAMS, adapter), sep=".")
    for name, magnitude in flatten_dict(adapter, sep=".").items():
        if name.endswith("magnitude"):
            norms = np.linalg.norm(found[name.replace("magnitude", "kernel")], axis=-2)
            np.testing.assert_allclose(norms, np.abs(magnitude), rtol=1e-5)


def test_the_gradient_of_dora_takes_the_norm_for_a_constant():
    lora = LoRA(rank=2, decomposed=True, targets=("head",))
    adapter = trained(lora)["head"]
    weights = np.random.default_rng(2).normal(size=(8, 5)).astype(np.float32)

    def loss(adapter):
        return jnp.sum(weights * lora.adapted(PARAMS, {"head": adapter})["head"]["kernel"])

    gradient = jax.grad(loss)(adapter)
    changed = PARAMS["head"]["kernel"] + adapter["a"] @ adapter["b"]
    norm = np.linalg.norm(changed, axis=0)
    upstream = weights * adapter["magnitude"] / norm
    np.testing.assert_allclose(gradient["b"], adapter["a"].T @ upstream, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient["magnitude"], (weights * changed / norm).sum(0), rtol=1e-4, atol=1e-5)


@every_kind
def test_only_what_is_named_changes_and_the_rest_is_the_same_arrays(lora):
    lora = LoRA(**{**vars(lora), "targets": ("*.proj",)})
    adapter = trained(lora)
    assert {name.rpartition(".")[0] for name in flatten_dict(adapter, sep=".")} == {"blocks.attn.proj"}
    before, after = (flatten_dict(tree, sep=".") for tree in (PARAMS, lora.adapted(PARAMS, adapter)))
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert (after[name] is leaf) == (name != "blocks.attn.proj.kernel")


def test_parameters_of_half_precision_stay_so_and_are_adapted_in_float32():
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PARAMS)
    lora = LoRA(rank=2)
    adapter = trained(lora)
    ours = lora.adapted(half, adapter)["head"]["kernel"]
    expected = jnp.asarray(half["head"]["kernel"], jnp.float32) + adapter["head"]["a"] @ adapter["head"]["b"]
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, expected.astype(jnp.bfloat16))


def test_first_values_have_the_spread_of_their_kind():
    params = {"wide": {"kernel": np.zeros((400, 30))}}
    uniform = LoRA(rank=16).init(jax.random.key(0), params)["wide"]["a"]
    assert np.abs(uniform).max() <= 1 / 20 and np.isclose(np.std(uniform), 1 / (20 * np.sqrt(3)), rtol=0.03)
    gaussian = LoRA(rank=16, start="gaussian").init(jax.random.key(0), params)["wide"]["a"]
    assert np.isclose(np.std(gaussian), 1 / 16, rtol=0.03)


def test_of_named_axes_an_adapter_has_the_names():
    model = MMDiT(channels=2, num_heads=2, head_dim=4, depth=3, pos_embed_max_size=4, pos_embed_base_size=4)
    shapes = ((1, 4, 4, 2), (1,), (1, 5, 6), (1, 9))
    inputs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    boxed = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    lora = LoRA(rank=3, decomposed=True, targets=("*attn.qkv", "*mlp.fc2"))
    adapter = flatten_dict(jax.eval_shape(lora.init, jax.random.key(0), boxed), sep=".")
    kernels = flatten_dict(boxed, sep=".")
    for name, leaf in adapter.items():
        assert isinstance(leaf, nn.LogicallyPartitioned) and len(leaf.names) == leaf.value.ndim
        layer, _, part = name.rpartition(".")
        kernel = kernels[f"{layer}.kernel"].names
        pieces = (None,) * layer.endswith("qkv")
        expected = {"a": (*pieces, kernel[-2], None), "b": (*pieces, None, kernel[-1]), "magnitude": kernel[-1:]}
        assert leaf.names == (*kernel[:-2], *expected[part])
    fresh = jax.eval_shape(lora.init, jax.random.key(0), boxed)
    found = jax.eval_shape(lora.adapted, meta.unbox(boxed), meta.unbox(fresh))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, meta.unbox(boxed))


def test_first_values_are_a_layers_own_whatever_else_is_adapted_and_wherever_they_are_drawn():
    whole = LoRA(rank=2).init(jax.random.key(0), PARAMS)["head"]["a"]
    alone = LoRA(rank=2, targets=("head",)).init(jax.random.key(0), PARAMS)["head"]["a"]
    compiled = jax.jit(LoRA(rank=2).init)(jax.random.key(0), PARAMS)["head"]["a"]
    np.testing.assert_array_equal(alone, whole)
    np.testing.assert_array_equal(compiled, whole)


def test_an_adapter_of_other_layers_or_another_rank_is_refused():
    adapter = {"tail": trained(LoRA(rank=2))["head"]}
    with pytest.raises(InputError, match="^the adapter has a layer tail, and the parameters have none$"):
        LoRA(rank=2).adapted(PARAMS, adapter)
    with pytest.raises(InputError, match="^the adapter of .* has rank 2, and rank is 8$"):
        LoRA(rank=8).adapted(PARAMS, trained(LoRA(rank=2)))


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (dict(targets=("*.proj", "*.fc9")), r"^no layer is called '\*\.fc9'; there are blocks\.attn\.proj"),
        (dict(fused=("head",)), r"^head is to be three matrices side by side, and gives 5 numbers$"),
    ],
)
def test_layers_that_are_not_there_or_do_not_divide_are_refused(lora, says):
    with pytest.raises(InputError, match=says):
        LoRA(**lora).init(jax.random.key(0), PARAMS)


def test_a_convolution_is_refused():
    with pytest.raises(InputError, match=r"^conv is no linear layer: its kernel has shape \(3, 3, 2, 4\)"):
        LoRA().init(jax.random.key(0), {"conv": {"kernel": np.zeros((3, 3, 2, 4))}})


@pytest.mark.parametrize("fields", [dict(rank=0), dict(alpha=0.0), dict(alpha=-1.0)])
def test_a_rank_or_alpha_that_is_not_positive_is_refused(fields):
    with pytest.raises(InputError, match="rank and alpha of LoRA are positive"):
        LoRA(**fields)
