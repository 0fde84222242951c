"""Laws of the blocks of U-Nets and autoencoders; that they equal diffusers' is held where whole networks are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from genjax.errors import InputError
from genjax.nn.image_blocks import (
    Downsample,
    GroupNorm,
    ResidualBlock,
    SpatialAttention,
    Upsample,
    dropped,
    halved,
    repeated,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, CONDITION = normal(0, 2, 4, 6, 8), normal(1, 2, 5)
KEYS = jax.random.split(jax.random.key(0), 2)


def parameters(module, *arrays):
    return meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *arrays))["params"]


def weights(module, *arrays):
    leaves, tree = jax.tree.flatten(parameters(module, *arrays))
    return jax.tree.unflatten(tree, [0.3 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def apply(module, params, *arrays):
    return jax.jit(module.apply)({"params": params}, *arrays)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resampling", ["none", "down", "up"])
def test_a_fresh_residual_block_adds_nothing_to_what_it_resamples(scale_shift, resampling):
    block = ResidualBlock(8, groups=4, scale_shift=scale_shift, resampling=resampling)
    output, _ = jax.jit(block.init_with_output)(jax.random.key(0), X, CONDITION)
    kept = {"none": lambda x: x, "down": halved, "up": repeated}[resampling](X)
    np.testing.assert_array_equal(output, kept)


def test_a_fresh_attention_adds_nothing():
    output, _ = jax.jit(SpatialAttention(groups=4).init_with_output)(jax.random.key(0), X)
    np.testing.assert_array_equal(output, X)


def test_a_last_layer_that_does_not_begin_as_zero_adds_something():
    block = ResidualBlock(8, groups=4, last_init=jax.nn.initializers.ones)
    output, _ = jax.jit(block.init_with_output)(jax.random.key(0), X)
    assert np.abs(output - X).max() > 0.1


def test_only_other_channels_need_a_shortcut_and_only_a_condition_needs_a_map():
    assert parameters(ResidualBlock(8, groups=4), X).keys() == {"norm1", "conv1", "norm2", "conv2"}
    names = parameters(ResidualBlock(12, groups=4), X, CONDITION).keys()
    assert names == {"norm1", "conv1", "condition", "norm2", "conv2", "shortcut"}


@pytest.mark.parametrize("scale_shift", [False, True])
def test_a_condition_of_zero_weight_modulates_nothing(scale_shift):
    block = ResidualBlock(8, groups=4, scale_shift=scale_shift)
    params = weights(block, X, CONDITION)
    params["condition"] = jax.tree.map(np.zeros_like, params["condition"])
    alone = {name: layer for name, layer in params.items() if name != "condition"}
    conditioned, unconditioned = apply(block, params, X, CONDITION), apply(ResidualBlock(8, groups=4), alone, X)
    np.testing.assert_allclose(conditioned, unconditioned, atol=1e-5)


def test_scale_and_shift_act_behind_the_norm_and_addition_before_it():
    """A large vector that is added is divided away by the norm again; one that shifts is not."""
    sizes = {}
    for scale_shift in (False, True):
        block = ResidualBlock(8, groups=4, scale_shift=scale_shift)
        params = weights(block, X, CONDITION)
        params["condition"]["bias"] = params["condition"]["bias"] + 1e4
        sizes[scale_shift] = np.abs(apply(block, params, X, CONDITION)).max()
    assert sizes[False] < 50 and sizes[True] > 1e3


def test_groups_are_normalised_over_channels_and_pixels_in_float32():
    output = apply(GroupNorm(4), weights(GroupNorm(4), X) | {"scale": np.ones(8), "bias": np.zeros(8)}, 30 * X + 1e3)
    groups = np.asarray(output, np.float64).reshape(2, 24, 4, 2)
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-4)
    np.testing.assert_allclose((groups**2).mean((1, 3)), 1, rtol=1e-3)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(ResidualBlock(12, groups=4, scale_shift=True, dropout=0.5), id="residual"),
        pytest.param(SpatialAttention(groups=4), id="attention"),
        pytest.param(Upsample(), id="up"),
        pytest.param(Downsample(), id="down"),
    ],
)
def test_a_sample_does_not_depend_on_its_batch(block):
    arrays = (X, CONDITION, KEYS) if isinstance(block, ResidualBlock) else (X,)
    params = weights(block, *arrays)
    alone = [apply(block, params, *(array[i : i + 1] for array in arrays))[0] for i in range(2)]
    np.testing.assert_allclose(apply(block, params, *arrays), np.stack(alone), atol=1e-5)


def test_attention_knows_no_place():
    """Without the norm's statistics, which know none either: a permutation of pixels permutes what comes out."""
    block = SpatialAttention(head_dim=2, groups=4)
    order = np.random.default_rng(2).permutation(24)

    def permuted(x):
        return x.reshape(2, 24, 8)[:, order].reshape(x.shape)

    run = functools.partial(apply, block, weights(block, X))
    np.testing.assert_allclose(run(permuted(X)), permuted(run(X)), atol=1e-5)


def test_attention_is_softmax_over_the_pixels_for_each_head():
    block = SpatialAttention(num_heads=2, groups=4)
    params = weights(block, X)
    normed = apply(GroupNorm(4), params["norm"], X).reshape(2, 24, 8)
    qkv = normed @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    query, key, value = np.split(qkv.reshape(2, 24, 6, 4).swapaxes(1, 2), 3, axis=1)
    attended = jax.nn.softmax(query @ key.swapaxes(2, 3) / 2) @ value
    expected = attended.swapaxes(1, 2).reshape(2, 24, 8) @ params["proj"]["kernel"] + params["proj"]["bias"]
    np.testing.assert_allclose(apply(block, params, X), X + expected.reshape(X.shape), atol=1e-4)


def test_halving_undoes_doubling_and_keeps_the_mean():
    np.testing.assert_allclose(halved(repeated(X)), X, atol=1e-6)
    np.testing.assert_allclose(halved(X).mean((1, 2)), X.mean((1, 2)), atol=1e-6)
    np.testing.assert_array_equal(repeated(X)[:, 1::2, ::2], X)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_downsampling_convolution_sees_three_by_three_pixels_from_its_corner_or_around_it(padding):
    kernel, params = normal(3, 3, 3, 8, 8), weights(Downsample(padding), X)
    around = np.pad(X, ((0, 0), (padding, 1), (padding, 1), (0, 0)))
    expected = [np.einsum("bijc,ijcd->bd", around[:, 2 : 2 + 3, 4 : 4 + 3], kernel)]
    output = apply(Downsample(padding), {"conv": {"kernel": kernel, "bias": np.zeros(8)}}, X)
    assert output.shape == (2, 2, 3, 8) and params.keys() == {"conv"}
    np.testing.assert_allclose(output[:, 1, 2], expected[0], atol=1e-4)


def test_upsampling_is_a_convolution_of_repeated_pixels():
    identity = np.zeros((3, 3, 8, 8), np.float32)
    identity[1, 1] = np.eye(8)
    output = apply(Upsample(), {"conv": {"kernel": identity, "bias": np.ones(8)}}, X)
    np.testing.assert_allclose(output, repeated(X) + 1, atol=1e-6)


def test_the_share_that_is_dropped_is_the_rate_and_the_mean_stays():
    keys = jax.random.split(jax.random.key(1), 4)
    output = np.asarray(dropped(jnp.ones((4, 100, 100)), 0.3, keys))
    assert set(np.unique(output)) == {np.float32(0), np.float32(1 / 0.7)}
    np.testing.assert_allclose((output == 0).mean((1, 2)), 0.3, atol=5 * (0.21 / 1e4) ** 0.5)
    assert (output[0] != output[1]).any()


def test_nothing_is_dropped_without_keys_or_without_a_rate():
    block = ResidualBlock(8, groups=4, dropout=0.5)
    params = weights(block, X)
    without = apply(block, params, X)
    assert np.abs(apply(block, params, X, None, KEYS) - without).max() > 0.01
    np.testing.assert_array_equal(apply(ResidualBlock(8, groups=4), params, X, None, KEYS), without)


@pytest.mark.parametrize(
    ("module", "arrays", "says"),
    [
        (SpatialAttention(head_dim=3, groups=4), [X], "8 channels cannot be divided into heads of width 3"),
        (SpatialAttention(head_dim=16, groups=4), [X], "8 channels cannot be divided into heads of width 16"),
        (SpatialAttention(head_dim=0, groups=4), [X], "8 channels cannot be divided into heads of width 0"),
        (SpatialAttention(head_dim=-4, groups=4), [X], "8 channels cannot be divided into heads of width -4"),
        (SpatialAttention(num_heads=3, groups=4), [X], "8 channels cannot be divided into 3 heads"),
        (SpatialAttention(num_heads=0, groups=4), [X], "8 channels cannot be divided into 0 heads"),
        (ResidualBlock(8, groups=4, scale_shift=True), [X], "scales and shifts got no condition"),
        (ResidualBlock(8, groups=4, resampling="down"), [X[:, 1:]], "an image of 3 x 6 pixels cannot be halved"),
        (Downsample(), [X[:, :, 1:]], "an image of 4 x 5 pixels cannot be halved"),
        (Downsample(2), [X], "padding of a downsampling convolution is 0 or 1, not 2"),
        (GroupNorm(3), [X], "8 channels cannot be divided into 3 groups"),
        (GroupNorm(0), [X], "8 channels cannot be divided into 0 groups"),
    ],
)
def test_what_does_not_divide_is_refused(module, arrays, says):
    with pytest.raises(InputError, match=says):
        parameters(module, *arrays)


def test_a_resampling_of_no_known_name_is_refused(unchecked):
    with pytest.raises(InputError, match="resampling of a residual block is one of none, down, up, not 'halve'"):
        parameters(ResidualBlock(8, groups=4, resampling="halve"), X)
