"""Laws of the MM-DiT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from hypothesis import given, settings
from hypothesis import strategies as st

from genjax.models.mmdit import JointBlock, MMDiT, patchify, unpatchify
from genjax.nn.embeddings import sincos_2d_centre_crop, timestep_embedding
from genjax.nn.norms import layer_norm

SMALL = dict(channels=3, num_heads=2, head_dim=8, pos_embed_max_size=6, pos_embed_base_size=4)
PLAIN = MMDiT(depth=3, qk_norm=False, **SMALL)
DUAL = MMDiT(depth=4, dual_attention_layers=1, **SMALL)
SINGLE = MMDiT(depth=1, dual_attention_layers=1, **SMALL)
SHAPES = dict(x_t=(3, 4, 8, 3), t=(3,), context=(3, 5, 7), pooled=(3, 6))

# These networks take longer to compile than to run.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def normal(seed: int, shape: tuple[int, ...], std: float = 1.0) -> np.ndarray:
    return (std * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def inputs() -> dict[str, np.ndarray]:
    """A batch of three: random images, context and pooled vectors, and one time each."""
    arrays = {name: normal(i, shape) for i, (name, shape) in enumerate(SHAPES.items())}
    return arrays | {"t": np.array([0.1, 0.5, 0.9], np.float32)}


def parameters(model: MMDiT, **arrays):
    """Names, shapes and types; nothing is computed."""
    return meta.unbox(jax.eval_shape(functools.partial(model.init, jax.random.key(0)), **(inputs() | arrays)))["params"]


@functools.cache
def weights(model: MMDiT):
    """Random weights everywhere: in fresh ones the gates are closed and the last layer is zero."""
    leaves, tree = jax.tree.flatten(parameters(model))
    fan_ins = [leaf.shape[-2] if leaf.ndim > 1 else 4 for leaf in leaves]
    return jax.tree.unflatten(tree, [normal(i, leaf.shape, fan_ins[i] ** -0.5) for i, leaf in enumerate(leaves)])


@functools.cache
def apply(model: MMDiT):
    return jit(lambda params, arrays: model.apply({"params": params}, **arrays))


def changed(output: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which samples differ, (B,)."""
    return np.abs(np.asarray(output) - np.asarray(other)).reshape(len(output), -1).max(axis=-1) > 1e-3


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_unpatchify_undoes_patchify(rows, columns, patch):
    image = normal(0, (2, rows * patch, columns * patch, 3))
    tokens = patchify(image, patch)
    assert tokens.shape == (2, rows * columns, patch * patch * 3)
    np.testing.assert_array_equal(unpatchify(tokens, patch, rows), image)


def test_tokens_are_patches_row_by_row_and_channels_vary_fastest_inside():
    image = normal(0, (2, 4, 6, 3))
    tokens = patchify(image, 2)
    for row, column in np.ndindex(2, 3):
        patch = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(tokens[:, 3 * row + column], patch.reshape(2, -1))


@pytest.mark.slow
def test_a_fresh_network_says_exactly_zero():
    fresh = MMDiT(depth=2, dual_attention_layers=1, **SMALL)
    output, variables = jit(functools.partial(fresh.init_with_output, jax.random.key(0)))(**inputs())
    np.testing.assert_array_equal(output, np.zeros(SHAPES["x_t"]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_a_fresh_block_is_the_identity():
    block = JointBlock(num_heads=2, head_dim=8, qk_norm=True, dual_attention=True)
    streams = normal(0, (3, 5, 16)), normal(1, (3, 8, 16))
    (outputs, _), _ = jit(block.init_with_output)(jax.random.key(0), streams, normal(2, (3, 16)))
    jax.tree.map(np.testing.assert_array_equal, outputs, streams)


@pytest.mark.parametrize(
    ("sizes", "published", "with_positions"),
    [
        pytest.param(dict(qk_norm=False), 2_028_328_000, 2_084_951_104, id="SD3-medium"),
        pytest.param(
            dict(dual_attention_layers=13, pos_embed_max_size=384), 2_243_171_520, 2_469_663_936, id="SD3.5-medium"
        ),
        pytest.param(dict(depth=38, num_heads=38), 8_056_627_520, 8_146_280_768, id="SD3.5-large"),
    ],
)
def test_the_released_sizes_have_the_published_numbers_of_parameters(sizes, published, with_positions):
    # The counts of diffusers 0.42.1. The files of released weights also store the positions, which are computed here.
    model = MMDiT(**sizes)
    shapes = dict(x_t=(1, 32, 32, 16), t=(1,), context=(1, 4, 4096), pooled=(1, 2048))
    structs = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters(model, **structs)))
    assert count == published
    assert count + model.pos_embed_max_size**2 * model.num_heads * model.head_dim == with_positions


def test_a_sample_does_not_depend_on_its_batch():
    together = apply(SINGLE)(weights(SINGLE), inputs())
    alone = [apply(SINGLE)(weights(SINGLE), {k: v[i : i + 1] for k, v in inputs().items()})[0] for i in range(3)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_every_input_of_a_sample_changes_its_output_and_no_other(name):
    arrays = inputs()
    other = arrays[name].copy()
    other[1] += 0.3
    differs = changed(apply(DUAL)(weights(DUAL), arrays), apply(DUAL)(weights(DUAL), arrays | {name: other}))
    np.testing.assert_array_equal(differs, [False, True, False])


@pytest.mark.parametrize("place", [0, 4])
def test_every_patch_sees_every_text_token(place):
    arrays = inputs()
    context = arrays["context"].copy()
    context[:, place] += 1
    outputs = [apply(PLAIN)(weights(PLAIN), arrays | {"context": c}) for c in (arrays["context"], context)]
    assert (np.abs(patchify(outputs[0] - outputs[1], 2)).max(axis=-1) > 1e-4).all()


def test_the_order_of_text_tokens_does_not_matter_and_that_of_patches_does():
    arrays = inputs()
    output = apply(DUAL)(weights(DUAL), arrays)
    reordered = apply(DUAL)(weights(DUAL), arrays | {"context": arrays["context"][:, ::-1]})
    np.testing.assert_allclose(reordered, output, atol=1e-5)
    mirrored = unpatchify(patchify(arrays["x_t"], 2)[:, ::-1], 2, 2)
    mirrored_output = apply(DUAL)(weights(DUAL), arrays | {"x_t": mirrored})
    assert changed(unpatchify(patchify(mirrored_output, 2)[:, ::-1], 2, 2), output).all()


def unrolled(model: MMDiT, params, x_t, t, context, pooled):
    """The network written out, block by block, on the slices of its stacked parameters."""

    def linear(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def mlp(layers, x):
        return linear(layers["fc2"], jax.nn.silu(linear(layers["fc1"], x)))

    width, rows, columns = model.num_heads * model.head_dim, x_t.shape[1] // 2, x_t.shape[2] // 2
    sizes = dict(max_size=model.pos_embed_max_size, base_size=model.pos_embed_base_size)
    x = linear(params["x_embedder"], patchify(x_t, 2)) + sincos_2d_centre_crop(rows, columns, width, **sizes)
    streams = linear(params["context_embedder"], context), x
    condition = mlp(params["t_embedder"], timestep_embedding(1000 * t, 256)) + mlp(params["y_embedder"], pooled)

    for i in range(model.depth):
        dual, last = i < model.dual_attention_layers, i == model.depth - 1
        scanned_dual = min(model.dual_attention_layers, model.depth - 1)
        name, index = ("dual_blocks", i) if i < scanned_dual else ("blocks", i - scanned_dual)
        layer = params["last_block"] if last else jax.tree.map(lambda leaf, at=index: leaf[at], params[name])
        block = JointBlock(model.num_heads, model.head_dim, model.qk_norm, dual_attention=dual, pre_only=last)
        streams, _ = block.apply({"params": layer}, streams, condition)

    shift, scale = np.split(linear(params["final_modulation"]["linear"], jax.nn.silu(condition))[:, None], 2, axis=-1)
    return unpatchify(linear(params["final_linear"], layer_norm(streams[1]) * (1 + scale) + shift), 2, rows)


@pytest.mark.parametrize("model", [PLAIN, DUAL, SINGLE], ids=["plain", "dual", "single"])
def test_the_scan_equals_a_loop_over_blocks(model):
    loop = jit(functools.partial(unrolled, model))(weights(model), **inputs())
    np.testing.assert_allclose(apply(model)(weights(model), inputs()), loop, atol=2e-5)


@functools.cache
def work(policy: str) -> tuple[int, int]:
    """How often the network and its gradient take a tanh, of which each MLP has one."""
    model = PLAIN.clone(remat=policy)

    def mean_square(params):
        return jnp.square(model.apply({"params": params}, **inputs())).mean()

    programs = (jax.make_jaxpr(f)(parameters(model)) for f in (mean_square, jax.grad(mean_square)))
    return tuple(str(program).count(" tanh ") for program in programs)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["dots", "full"])
def test_rematerialisation_renames_nothing_and_adds_work_to_the_gradient_only(policy):
    assert parameters(PLAIN.clone(remat=policy)) == parameters(PLAIN)
    (forward, gradient), (forward_without, gradient_without) = work(policy), work("none")
    assert forward == forward_without and gradient > gradient_without


@pytest.mark.slow
def test_bfloat16_weights_give_bfloat16_outputs_near_those_of_float32():
    full = apply(DUAL)(weights(DUAL), inputs())
    trees = weights(DUAL), inputs()
    half_weights, half_inputs = (jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree) for tree in trees)
    half = apply(DUAL)(half_weights, half_inputs | {"t": inputs()["t"]})
    assert half.dtype == jnp.bfloat16
    assert np.linalg.norm(np.float32(half) - full) < 0.05 * np.linalg.norm(full)


@pytest.mark.parametrize("shape", [(3, 5, 4, 3), (3, 4, 5, 3)])
def test_a_side_that_is_no_multiple_of_the_patch_is_refused(shape):
    with pytest.raises(ValueError, match="an image side of 5 is not a multiple of patch_size = 2"):
        parameters(PLAIN, x_t=np.zeros(shape))


def test_an_image_larger_than_the_positions_is_refused():
    with pytest.raises(ValueError, match="a grid of 7 x 2 tokens does not fit into pos_embed_max_size = 6"):
        parameters(PLAIN, x_t=np.zeros((3, 14, 4, 3)))
