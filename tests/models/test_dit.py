"""Laws of the DiT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta

from genjax.errors import InputError
from genjax.models.dit import SIZES, DiT, DiTBlock
from genjax.models.mmdit import patchify, unpatchify
from genjax.nn.embeddings import sincos_2d, timestep_embedding
from genjax.nn.norms import layer_norm

SMALL = dict(channels=3, depth=3, num_heads=2, head_dim=8, num_classes=5)
MODEL = DiT(**SMALL)
INPUTS = ("x_t", "t", "label")


def normal(seed: int, shape: tuple[int, ...], std: float = 1.0) -> np.ndarray:
    return (std * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def inputs() -> dict[str, np.ndarray]:
    """A batch of three: random images, one time and one label each; the last label is the null class."""
    return {
        "x_t": normal(0, (3, 4, 8, 3)),
        "t": np.array([0.1, 0.5, 0.9], np.float32),
        "label": np.array([0, 2, 5], np.int32),
    }


def parameters(model: DiT, **arrays):
    """Names, shapes and types; nothing is computed."""
    return meta.unbox(jax.eval_shape(functools.partial(model.init, jax.random.key(0)), **(inputs() | arrays)))["params"]


@functools.cache
def weights():
    """Random weights everywhere: in fresh ones the gates are closed and the last layer is zero."""
    leaves, tree = jax.tree.flatten(parameters(MODEL))
    fan_ins = [leaf.shape[-2] if leaf.ndim > 1 else 4 for leaf in leaves]
    return jax.tree.unflatten(tree, [normal(i, leaf.shape, fan_ins[i] ** -0.5) for i, leaf in enumerate(leaves)])


@jax.jit
def apply(params, arrays):
    return MODEL.apply({"params": params}, **arrays)


def changed(output: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which samples differ, (B,)."""
    return np.abs(np.asarray(output) - np.asarray(other)).reshape(len(output), -1).max(axis=-1) > 1e-3


@pytest.mark.parametrize("learned_variance", [False, True])
def test_a_fresh_network_says_exactly_zero(learned_variance):
    fresh = DiT(**SMALL | dict(depth=2), learned_variance=learned_variance)
    output, variables = jax.jit(functools.partial(fresh.init_with_output, jax.random.key(0)))(**inputs())
    np.testing.assert_array_equal(output, np.zeros((3, 4, 8, 6 if learned_variance else 3)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_a_fresh_block_is_the_identity():
    tokens = normal(0, (3, 5, 16))
    (output, _), _ = jax.jit(DiTBlock(num_heads=2, head_dim=8).init_with_output)(
        jax.random.key(0), tokens, normal(1, (3, 16))
    )
    np.testing.assert_array_equal(output, tokens)


PUBLISHED = {"S": (33, 33, 33), "B": (130, 130, 131), "L": (458, 458, 459), "XL": (675, 675, 676)}
"""Millions of parameters with patches of 2, 4 and 8 (the paper's table 4)."""


@pytest.mark.parametrize("patch_size", [2, 4, 8])
@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_sizes_have_the_published_numbers_of_parameters(size, patch_size):
    shapes = dict(x_t=(1, 32, 32, 4), t=(1,), label=(1,))
    structs = {name: jax.ShapeDtypeStruct(shape, inputs()[name].dtype) for name, shape in shapes.items()}
    model = DiT(**SIZES[f"{size}/{patch_size}"], learned_variance=True)
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters(model, **structs)))
    assert round(count / 1e6) == PUBLISHED[size][(2, 4, 8).index(patch_size)]
    if (size, patch_size) == ("XL", 2):
        # The published code counts its table of positions at 256 x 256 pixels too; they are computed here.
        assert count + 16 * 16 * 16 * 72 == 675_129_632


def test_fresh_embeddings_of_labels_and_times_have_the_published_deviation():
    """0.02 in facebookresearch/DiT, for the table of labels and both layers of the embedding of time."""
    model = MODEL.clone(num_classes=1000)

    @jax.jit
    def fresh(key):
        params = meta.unbox(model.init(key, **inputs()))["params"]
        return [params["y_embedder"]["embedding"], *(params["t_embedder"][name]["kernel"] for name in ("fc1", "fc2"))]

    for leaf, shape in zip(fresh(jax.random.key(0)), [(1001, 16), (256, 16), (16, 16)], strict=True):
        assert leaf.shape == shape
        np.testing.assert_allclose([leaf.mean(), leaf.std()], [0, 0.02], atol=4 * 0.02 / leaf.size**0.5)


def test_a_sample_does_not_depend_on_its_batch():
    together = apply(weights(), inputs())
    alone = [apply(weights(), {k: v[i : i + 1] for k, v in inputs().items()})[0] for i in range(3)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_of_a_sample_changes_its_output_and_no_other(name):
    arrays = inputs()
    other = arrays[name].copy()
    other[1] += 1 if name == "label" else 0.3
    differs = changed(apply(weights(), arrays), apply(weights(), arrays | {name: other}))
    np.testing.assert_array_equal(differs, [False, True, False])


def test_the_null_class_is_a_class_of_its_own():
    outputs = [apply(weights(), inputs() | {"label": np.full(3, label, np.int32)}) for label in range(6)]
    assert all(changed(outputs[5], outputs[label]).all() for label in range(5))
    assert parameters(MODEL)["y_embedder"]["embedding"].shape == (6, 16)


def test_the_order_of_patches_matters():
    output = apply(weights(), inputs())
    mirrored = unpatchify(patchify(inputs()["x_t"], 2)[:, ::-1], 2, 2)
    mirrored_output = apply(weights(), inputs() | {"x_t": mirrored})
    assert changed(unpatchify(patchify(mirrored_output, 2)[:, ::-1], 2, 2), output).all()


def test_the_scan_equals_a_loop_over_blocks():
    def linear(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    @jax.jit
    def unrolled(params, x_t, t, label):
        """The network written out, block by block, on the slices of its stacked parameters."""
        x = linear(params["x_embedder"], patchify(x_t, 2)) + sincos_2d(2, 4, 16)
        time = params["t_embedder"]
        condition = linear(time["fc2"], jax.nn.silu(linear(time["fc1"], timestep_embedding(1000 * t, 256))))
        condition = condition + params["y_embedder"]["embedding"][label]
        for i in range(3):
            layer = jax.tree.map(lambda leaf, at=i: leaf[at], params["blocks"])
            x, _ = DiTBlock(2, 8).apply({"params": layer}, x, condition)
        modulation = linear(params["final_modulation"]["linear"], jax.nn.silu(condition))[:, None]
        shift, scale = jnp.split(modulation, 2, axis=-1)
        return unpatchify(linear(params["final_linear"], layer_norm(x) * (1 + scale) + shift), 2, 2)

    np.testing.assert_allclose(apply(weights(), inputs()), unrolled(weights(), **inputs()), atol=2e-5)


def test_times_in_their_own_units_are_times_of_the_scale_one():
    arrays = inputs() | {"t": 1000 * inputs()["t"]}
    raw = jax.jit(lambda params: MODEL.clone(time_scale=1.0).apply({"params": params}, **arrays))(weights())
    np.testing.assert_allclose(raw, apply(weights(), inputs()), atol=1e-4)


def test_bfloat16_weights_and_images_give_bfloat16_outputs():
    half = {name: array.astype(jnp.bfloat16) if name == "x_t" else array for name, array in inputs().items()}
    assert jax.eval_shape(apply, jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights()), half).dtype == jnp.bfloat16


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_rematerialisation_renames_nothing_and_adds_work_to_the_gradient_only(policy):
    def work(remat):
        """How often the network and its gradient take a tanh, of which each MLP has one."""

        def mean_square(params):
            return jnp.square(MODEL.clone(remat=remat).apply({"params": params}, **inputs())).mean()

        programs = (jax.make_jaxpr(f)(parameters(MODEL)) for f in (mean_square, jax.grad(mean_square)))
        return tuple(str(program).count(" tanh ") for program in programs)

    assert parameters(MODEL.clone(remat=policy)) == parameters(MODEL)
    (forward, gradient), (forward_without, gradient_without) = work(policy), work("none")
    assert forward == forward_without and gradient > gradient_without


def test_without_classes_there_is_no_table_and_no_label_is_taken():
    model = MODEL.clone(num_classes=0)
    assert parameters(model, label=None).keys() == parameters(MODEL).keys() - {"y_embedder"}
    with pytest.raises(InputError, match="num_classes = 0 takes no label"):
        parameters(model)
    with pytest.raises(InputError, match="5 classes needs a label"):
        parameters(MODEL, label=None)


@pytest.mark.parametrize("shape", [(3, 5, 4, 3), (3, 4, 5, 3)])
def test_a_side_that_is_no_multiple_of_the_patch_is_refused(shape):
    with pytest.raises(InputError, match="an image side of 5 is not a multiple of patch_size = 2"):
        parameters(MODEL, x_t=np.zeros(shape))


@pytest.mark.slow
def test_a_network_of_intervals_sees_both_times_of_each_sample_and_without_a_length_one_more_embedding():
    """Its word for a length of 0 is that of the network of one time whose embedding of time has that of 0 added."""
    model = MODEL.clone(intervals=True, depth=1)
    times = np.array([[0.1, 0.0], [0.5, 0.0], [0.9, 0.0]], np.float32)
    leaves, tree = jax.tree.flatten(parameters(model, t=times))
    params = jax.tree.unflatten(tree, [normal(i, x.shape, 0.3) for i, x in enumerate(leaves)])
    apply = jax.jit(lambda params, arrays: model.apply({"params": params}, **arrays))
    output = apply(params, inputs() | {"t": times})
    for place in (0, 1):
        other = times.copy()
        other[1, place] += 0.3
        differs = changed(output, apply(params, inputs() | {"t": other}))
        np.testing.assert_array_equal(differs, [False, True, False])

    own = dict(params)
    layers = own.pop("interval_embedder")
    first = nn.silu(timestep_embedding(jnp.zeros(1), 256) @ layers["fc1"]["kernel"] + layers["fc1"]["bias"])
    added = (first @ layers["fc2"]["kernel"] + layers["fc2"]["bias"])[0]
    last = own["t_embedder"]["fc2"]
    own["t_embedder"] = own["t_embedder"] | {"fc2": last | {"bias": last["bias"] + added}}
    plain = MODEL.clone(depth=1).apply({"params": own}, **inputs() | {"t": times[:, 0]})
    np.testing.assert_allclose(output, plain, atol=2e-5)


def test_both_numbers_of_time_are_embedded_in_one_way():
    """With equal weights of both embedders they may change places."""
    model = MODEL.clone(intervals=True, depth=1, time_scale=3.0)
    times = np.array([[0.1, 0.05], [0.5, 0.4], [0.9, 0.2]], np.float32)
    leaves, tree = jax.tree.flatten(parameters(model, t=times))
    params = dict(jax.tree.unflatten(tree, [normal(i, x.shape, 0.3) for i, x in enumerate(leaves)]))
    params["interval_embedder"] = params["t_embedder"]
    apply = jax.jit(lambda t: model.apply({"params": params}, **inputs() | {"t": t}))
    np.testing.assert_allclose(apply(times), apply(times[:, ::-1]), atol=1e-5)


@pytest.mark.parametrize(("intervals", "sentence"), [(True, "two times of a row"), (False, "one time of a row")])
def test_times_of_another_shape_are_refused(intervals, sentence):
    shape = (3,) if intervals else (3, 2)
    with pytest.raises(InputError, match=sentence):
        parameters(MODEL.clone(intervals=intervals), t=np.zeros(shape, np.float32))
