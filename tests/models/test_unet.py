"""Laws of the U-Net."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta

from genjax.errors import InputError
from genjax.models.unet import SIZES, UNet
from genjax.nn.image_blocks import ResidualBlock

SMALL = dict(widths=(8, 16), blocks=1, attention_levels=(1,), groups=4)
DDPM = UNet(**SMALL)
FLAT = UNet(widths=(8,), blocks=1, attention_levels=(), middle_attention=False, groups=4)
ADM = UNet(
    **SMALL,
    head_dim=4,
    scale_shift=True,
    resample="residual",
    num_classes=5,
    null_class=True,
    dropout=0.5,
    sines_first=False,
    frequency_shift=0,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(model: UNet) -> dict[str, np.ndarray]:
    """A batch of two: random images, times, and what the network takes as a condition."""
    arrays = {"x_t": normal(0, 2, 4, 8, 3), "t": np.array([0.1, 0.9], np.float32)}
    conditions = {"class": np.array([0, 5]), "number": np.array([0.3, 2.0], np.float32), "vector": normal(1, 2, 32)}
    takes = model.num_classes or model.condition != "class"
    return arrays | ({"condition": conditions[model.condition]} if takes else {})


def parameters(model: UNet, **arrays):
    """Names, shapes and types; nothing is computed."""
    arrays = inputs(model) | arrays
    return meta.unbox(jax.eval_shape(functools.partial(model.init, jax.random.key(0)), **arrays))["params"]


@functools.cache
def weights(model: UNet):
    """Random weights everywhere: in fresh ones the last layer of each block is zero."""
    leaves, tree = jax.tree.flatten(parameters(model))
    fan_ins = [np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4 for leaf in leaves]
    return jax.tree.unflatten(tree, [normal(i, *leaf.shape) * fan_ins[i] ** -0.5 for i, leaf in enumerate(leaves)])


@functools.cache
def apply(model: UNet):
    return jax.jit(lambda params, arrays: model.apply({"params": params}, **arrays))


def output(model: UNet, **arrays) -> np.ndarray:
    return np.asarray(apply(model)(weights(model), inputs(model) | arrays))


def changed(output: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which samples differ, (B,)."""
    return np.abs(output - other).reshape(len(output), -1).max(axis=-1) > 1e-3


@pytest.mark.slow
def test_a_fresh_network_says_exactly_zero():
    model = FLAT.clone(attention_levels=(0,), scale_shift=True, num_classes=5, learned_variance=True)
    arrays = inputs(model) | {"condition": np.array([0, 4])}
    fresh, variables = jax.jit(functools.partial(model.init_with_output, jax.random.key(0)))(**arrays)
    np.testing.assert_array_equal(fresh, np.zeros((2, 4, 8, 6)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


PUBLISHED = {
    "ddpm-cifar10": (35.7, 35_746_307),
    "ddpm-256": (114, 113_673_219),
    "adm-64": (296, 295_904_454),
    "adm-128": (422, 421_529_606),
    "adm-256": (554, 553_838_086),
}
"""Millions of parameters in the papers (DDPM, appendix B; ADM, table 12) and the counts of diffusers 0.42.1."""


LARGE = ("ddpm-256", "adm-64", "adm-128", "adm-256")
"""To go through all their layers takes seconds."""


@pytest.mark.parametrize("size", [pytest.param(s, marks=pytest.mark.slow) if s in LARGE else s for s in SIZES])
def test_the_published_sizes_have_the_published_numbers_of_parameters(size):
    model = UNet(**SIZES[size])
    arrays = {"x_t": jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), "t": jax.ShapeDtypeStruct((1,), jnp.float32)}
    if model.num_classes:
        arrays["condition"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    abstract = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), **arrays)
    count = sum(leaf.size for leaf in jax.tree.leaves(meta.unbox(abstract)))
    millions, exact = PUBLISHED[size]
    assert count == exact and abs(count / 1e6 - millions) < 0.5


def ddpm(image_size: int, multipliers: tuple[int, ...], dropout: float) -> UNet:
    """Appendix B of Ho et al. 2020 (attention at 16 x 16 pixels) and its code: norms with TensorFlow's epsilon."""
    return UNet(
        widths=tuple(128 * multiplier for multiplier in multipliers),
        attention_levels=((image_size // 16).bit_length() - 1,),
        dropout=dropout,
        blocks=2,
        num_heads=1,
        groups=32,
        epsilon=1e-6,
        scale_shift=False,
        resample="convolution",
        downsample_padding=0,
        sines_first=True,
        frequency_shift=1,
    )


def adm(image_size: int, channels: int, multipliers: tuple[int, ...], **flags) -> UNet:
    """The flags in the README of openai/guided-diffusion, and what its code adds to them: norms and sinusoids."""
    return UNet(
        attention_levels=tuple((image_size // side).bit_length() - 1 for side in (32, 16, 8)),
        num_classes=1000,
        widths=tuple(channels * multiplier for multiplier in multipliers),
        learned_variance=True,
        resample="residual",
        scale_shift=True,
        groups=32,
        epsilon=1e-5,
        sines_first=False,
        frequency_shift=0,
        **flags,
    )


@pytest.mark.parametrize(
    ("size", "published"),
    [
        ("ddpm-cifar10", ddpm(32, (1, 2, 2, 2), dropout=0.1)),
        ("ddpm-256", ddpm(256, (1, 1, 2, 2, 4, 4), dropout=0.0)),
        ("adm-64", adm(64, 192, (1, 2, 3, 4), dropout=0.1, head_dim=64, blocks=3)),
        ("adm-128", adm(128, 256, (1, 1, 2, 3, 4), dropout=0.0, num_heads=4, blocks=2)),
        ("adm-256", adm(256, 256, (1, 1, 2, 2, 4, 4), dropout=0.0, head_dim=64, blocks=2)),
    ],
)
def test_the_published_sizes_are_those_of_the_published_recipes(size, published):
    assert UNet(**SIZES[size]) == published


def test_fresh_embeddings_of_classes_are_standard_normal_as_torch_makes_those_of_adm():
    model = FLAT.clone(num_classes=1000)
    fresh = jax.jit(lambda key: model.init(key, **inputs(ADM))["params"]["condition_embedder"])(jax.random.key(0))
    table = meta.unbox(fresh)["embedding"]
    assert table.shape == (1000, 32)
    np.testing.assert_allclose([table.mean(), table.std()], [0, 1], atol=4 / 32_000**0.5)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch():
    arrays = inputs(ADM) | {"dropout_keys": jax.random.split(jax.random.key(0), 2)}
    alone = [apply(ADM)(weights(ADM), {name: array[i : i + 1] for name, array in arrays.items()})[0] for i in range(2)]
    np.testing.assert_allclose(output(ADM, **arrays), np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("name", ["x_t", "t", "condition"])
def test_every_input_of_a_sample_changes_its_output_and_no_other(name):
    other = inputs(ADM)[name].copy()
    other[1] -= 1 if name == "condition" else 0.3
    np.testing.assert_array_equal(changed(output(ADM, **{name: other}), output(ADM)), [False, True])


def test_every_pixel_sees_every_other():
    distant = inputs(DDPM)["x_t"].copy()
    distant[:, 0, 0] += 1
    assert (np.abs(output(DDPM, x_t=distant) - output(DDPM)).max(axis=-1) > 1e-5).all()


def test_keys_drop_activations_and_no_keys_drop_none():
    outputs = [output(ADM, dropout_keys=jax.random.split(jax.random.key(seed), 2)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert changed(outputs[0], outputs[2]).all() and changed(outputs[0], output(ADM)).all()
    careful = ADM.clone(dropout=0.0)
    np.testing.assert_allclose(apply(careful)(weights(ADM), inputs(ADM)), output(ADM), atol=1e-6)


def test_no_two_residual_blocks_of_a_sample_drop_by_the_same_key():
    keys = []

    def recorded(following, arguments, keywords, context):
        if not isinstance(context.module, ResidualBlock) or context.method_name != "__call__":
            return following(*arguments, **keywords)
        x, _, given = arguments
        keys.extend(map(tuple, np.asarray(jax.random.key_data(given))))
        return jnp.zeros((*x.shape[:-1], context.module.features))  # nothing of the block but its keys is asked for

    arrays = inputs(FLAT) | {"dropout_keys": jax.random.split(jax.random.key(0), 2)}
    variables = {"params": weights(FLAT)}
    with nn.intercept_methods(recorded):
        FLAT.clone(dropout=0.5).apply(variables, **arrays)
    assert len(keys) == 2 * 5 and len(set(keys)) == len(keys)


@pytest.mark.parametrize("kind", ["number", "vector"])
def test_a_condition_may_be_a_number_that_is_embedded_or_a_vector_that_is_added(kind):
    model = FLAT.clone(condition=kind)
    shapes = jax.tree.map(jnp.shape, parameters(model).get("condition_embedder"))
    assert shapes == (jax.tree.map(jnp.shape, parameters(model)["t_embedder"]) if kind == "number" else None)
    other = inputs(model)["condition"].copy()
    other[1] += 0.3
    np.testing.assert_array_equal(changed(output(model, condition=other), output(model)), [False, True])


def test_a_vector_of_zero_is_no_condition():
    model = FLAT.clone(condition="vector")
    unconditional = apply(FLAT)(weights(model), inputs(FLAT))
    np.testing.assert_allclose(output(model, condition=np.zeros((2, 32), np.float32)), unconditional, atol=1e-6)


def test_the_null_class_is_a_row_of_its_own():
    rows = [parameters(ADM.clone(null_class=null))["condition_embedder"]["embedding"].shape for null in (True, False)]
    assert rows == [(6, 32), (5, 32)]


def test_blocks_attentions_and_resampling_lie_where_they_are_asked_for():
    deep = UNet(widths=(8, 8, 16), blocks=2, attention_levels=(0, 2), middle_attention=False, groups=4)
    names = parameters(deep).keys()
    assert {name for name in names if "attention" in name} == {
        f"{way}_{level}_attention_{i}"
        for way, count in (("down", 2), ("up", 3))
        for level in (0, 2)
        for i in range(count)
    }
    assert {name for name in names if "resample" in name} == {
        *("down_0_resample", "down_1_resample", "up_1_resample", "up_2_resample")
    }
    assert sum("residual" in name for name in names) == 3 * 2 + 2 + 3 * 3


def test_times_in_their_own_units_are_times_of_the_scale_one():
    raw = apply(FLAT.clone(time_scale=1.0))(weights(FLAT), inputs(FLAT) | {"t": 1000 * inputs(FLAT)["t"]})
    np.testing.assert_allclose(raw, output(FLAT), atol=1e-4)


def test_bfloat16_weights_and_images_give_bfloat16_outputs():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights(ADM))
    half = inputs(ADM) | {"x_t": inputs(ADM)["x_t"].astype(jnp.bfloat16)}
    assert jax.eval_shape(apply(ADM), params, half).dtype == jnp.bfloat16


@pytest.mark.slow
def test_rematerialisation_renames_nothing_and_adds_work_to_the_gradient_only():
    def work(remat):
        """How often the network and its gradient normalise something."""

        def mean_square(params):
            return jnp.square(FLAT.clone(remat=remat).apply({"params": params}, **inputs(FLAT))).mean()

        programs = (jax.make_jaxpr(f)(parameters(FLAT)) for f in (mean_square, jax.grad(mean_square)))
        return tuple(str(program).count(" rsqrt ") for program in programs)

    assert parameters(FLAT.clone(remat="full")) == parameters(FLAT)
    (forward, gradient), (forward_without, gradient_without) = work("full"), work("none")
    assert forward == forward_without and gradient > gradient_without


@pytest.mark.parametrize(
    ("sizes", "arrays", "says"),
    [
        (dict(), dict(x_t=np.zeros((2, 4, 7, 3))), "an image side of 7 cannot be halved 1 times"),
        (dict(attention_levels=(2,)), {}, r"attention_levels of UNet lie in 0 to 1, not \(2,\)"),
        (dict(widths=()), {}, r"widths of UNet are positive, one for each level, not \(\)"),
        (dict(widths=(8, 10)), {}, "a width of 10 channels cannot be divided into 4 groups"),
        (dict(dropout=1.0), {}, r"dropout of UNet lies in \[0, 1\), not at 1.0"),
        (dict(blocks=0), {}, "blocks of UNet is at least 1, not 0"),
        (dict(head_dim=0), {}, "head_dim of UNet is at least 1, or None, not 0"),
        (dict(frequency_shift=4), {}, r"frequency_shift lies in \[0, 4\), for 4 frequencies of time, not at 4"),
        (dict(downsample_padding=2), {}, "downsample_padding of UNet is 0 or 1, not 2"),
        (dict(downsample_padding=2, resample="residual"), {}, "downsample_padding of UNet is 0 or 1, not 2"),
        (dict(num_heads=3), {}, "16 channels cannot be divided into 3 heads"),
        (dict(), dict(condition=np.zeros(2, np.int32)), "a UNet with num_classes = 0 takes no condition"),
        (dict(num_classes=3), dict(condition=None), "this UNet needs a class for each image"),
        (dict(condition="vector"), dict(condition=None), "this UNet needs a vector for each image"),
    ],
)
def test_what_does_not_fit_is_refused(sizes, arrays, says):
    with pytest.raises(InputError, match=says):
        parameters(DDPM.clone(**sizes), **arrays)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (dict(resample="convolutions"), "^resample of UNet is convolution or residual, not 'convolutions'"),
        (dict(condition="klass"), "^condition of UNet is class or number or vector, not 'klass'"),
    ],
)
def test_a_choice_of_no_known_name_is_refused(choice, says, unchecked):
    with pytest.raises(InputError, match=says):
        jax.eval_shape(DDPM.clone(**choice).init, jax.random.key(0), **inputs(DDPM))
