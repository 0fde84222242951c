"""Laws of the critic of patches: how far a score sees, which rows see one another, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.linen import meta

from genjax.errors import InputError
from genjax.models.patch_critic import BatchNorm, PatchCritic

KEY = jax.random.key(0)


def params_of(model, shape):
    params = meta.unbox(jax.jit(model.init)(KEY, jnp.zeros(shape)))["params"]
    return jax.tree.map(lambda p: p + 0.1 * np.random.default_rng(p.size).normal(size=p.shape), params)


@pytest.mark.parametrize(("layers", "side", "patches"), [(3, 256, 30), (3, 24, 1), (2, 32, 6), (1, 8, 2), (1, 6, 1)])
def test_the_number_of_patches_is_as_published(layers, side, patches):
    """30 x 30 of 256 pixels (Isola et al. 2017)."""
    model, image = PatchCritic(width=4, layers=layers, groups=2), jnp.zeros((1, side, side + 2**layers, 3))
    scores = jax.eval_shape(lambda image: model.init_with_output(KEY, image)[0], image)
    assert scores.shape == (1, patches, patches + 1) and scores.dtype == jnp.float32


def test_the_published_size_has_the_published_number_of_parameters():
    """2.769 million, of pairs of colour pictures (pix2pix' log): 4 x 4 kernels from 6 to 64, 128, 256, 512, 1."""
    model = PatchCritic(norm="batch")
    shapes = jax.eval_shape(lambda: meta.unbox(model.init(KEY, jnp.zeros((1, 32, 32, 6)))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2_768_705


@pytest.mark.slow
def test_a_score_sees_seventy_pixels_a_side():
    """Without norms, whose moments see everything: here they are the identity."""
    model = PatchCritic(width=1, groups=1)
    image = jnp.zeros((1, 128, 128, 1))
    params = jax.tree.map(jnp.ones_like, params_of(model, image.shape))

    def middle(image):
        with without_norms():
            return model.apply({"params": params}, image)[0, 7, 7]

    seen = np.asarray(jax.grad(middle)(image))[0, :, :, 0] != 0
    assert seen.any(axis=0).sum() == 70 and seen.any(axis=1).sum() == 70


def test_channels_double_up_to_eight_times_the_first():
    model = PatchCritic(width=2, layers=5, norm="batch")
    shapes = jax.eval_shape(lambda: meta.unbox(model.init(KEY, jnp.zeros((1, 96, 96, 3)))))["params"]
    assert [shapes[f"conv_{i}"]["kernel"].shape[-1] for i in range(6)] == [2, 4, 8, 16, 16, 16]


@pytest.mark.slow
def test_first_values_are_normal_with_a_deviation_of_two_hundredths():
    params = meta.unbox(PatchCritic(norm="batch").init(KEY, jnp.zeros((1, 24, 24, 3))))["params"]
    for fresh in (params["conv_2"]["kernel"], params["score"]["kernel"], params["norm_3"]["scale"] - 1):
        np.testing.assert_allclose(fresh.std(), 0.02, rtol=4 / np.sqrt(2 * fresh.size))
        assert abs(fresh.mean()) < 4 * 0.02 / np.sqrt(fresh.size)


def without_norms():
    def through(call, arguments, options, context):
        is_norm = context.module.name is not None and context.module.name.startswith("norm")
        return arguments[0] if is_norm else call(*arguments, **options)

    return nn.intercept_methods(through)


@pytest.mark.slow
def test_rows_see_one_another_through_norms_over_the_batch_alone():
    x = jax.random.normal(KEY, (3, 12, 12, 2))
    other = x.at[1:].multiply(0.3)
    for norm, sees in (("group", False), ("batch", True)):
        model = PatchCritic(width=4, layers=2, norm=norm, groups=2)
        params = params_of(model, x.shape)
        apply = jax.jit(lambda x, model=model, params=params: model.apply({"params": params}, x)[0])
        assert bool(jnp.abs(apply(x) - apply(other)).max() > 1e-3) is sees


def test_norms_over_the_batch_leave_no_mean_and_unit_variance():
    x = 3 + 2 * jax.random.normal(KEY, (4, 5, 6, 7))
    model = BatchNorm(epsilon=0.0)
    y = model.apply({"params": {"scale": jnp.ones(7), "bias": jnp.zeros(7)}}, x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (PatchCritic(width=4, groups=2), (1, 23, 64, 3), "24 pixels a side or more, not of 23x64"),
        (PatchCritic(width=4, groups=3), (1, 64, 64, 3), "8 channels cannot be divided into 3 groups"),
        (PatchCritic(width=4, groups=2), (1, 8), "scores images"),
        (PatchCritic(layers=0), (1, 64, 64, 3), "layers of PatchCritic is at least 1, not 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(model, shape, said):
    with pytest.raises(InputError, match=said):
        jax.eval_shape(model.init, KEY, jnp.zeros(shape))
