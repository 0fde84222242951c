"""Laws of the autoencoder: shapes by strides, published sizes, samples that do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from genjax.errors import InputError
from genjax.models.autoencoder import SIZES, Autoencoder

TINY = Autoencoder(
    widths=(4, 8), blocks=1, attention_levels=(1,), z_channels=3, code_channels=2, moments=True, groups=2
)
PUBLISHED = {
    "vqgan-f16": 72_141_699 - 1024 * 256,  # diffusers counts the codebook
    "vq-f4": 55_322_782 - 8192 * 3,
    "kl-f8": 83_653_863,
    "kl-f8-16": 83_819_683,
}
RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 8, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    """Parameters that are all different numbers: fresh blocks add nothing."""
    abstract = meta.unbox(jax.eval_shape(TINY.init, jax.random.key(0), IMAGE))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), abstract)


@pytest.fixture(scope="module")
def apply(variables):
    return jax.jit(lambda x, method: TINY.apply(variables, x, method=method), static_argnums=1)


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_the_published_numbers_of_parameters(size):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(Autoencoder(**SIZES[size]).init, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PUBLISHED[size]


@pytest.mark.parametrize(
    ("size", "stride"), [("vqgan-f16", 16), ("vq-f8", 8), ("vq-f4", 4), ("kl-f8", 8), ("kl-f16", 16)]
)
def test_a_published_size_has_the_stride_of_its_name(size, stride):
    network = Autoencoder(**SIZES[size])
    assert network.stride == stride
    image = jax.ShapeDtypeStruct((1, 2 * stride, stride, 3), jnp.float32)
    shapes = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    assert shapes[0].shape == image.shape
    encode = jax.eval_shape(lambda v, x: network.apply(v, x, method="encode"), shapes[1], image)
    assert encode.shape == (1, 2, 1, network.code_width * (2 if network.moments else 1))


def test_moments_are_twice_the_channels_of_a_code(apply):
    assert apply(IMAGE, "encode").shape == (2, 4, 6, 4)
    assert apply(IMAGE[..., :2][:, :4, :6], "decode").shape == IMAGE.shape


def test_decoding_is_the_last_convolution_of_the_features(apply, variables):
    code = RNG.normal(size=(2, 4, 6, 2)).astype(np.float32)
    last = variables["params"]["conv_out"]
    features = apply(code, "features")
    convolved = jax.lax.conv_general_dilated(
        features, last["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(convolved + last["bias"], apply(code, "decode"), atol=1e-5)


def test_no_image_sees_another(apply):
    other = np.concatenate([IMAGE[:1], RNG.normal(size=(1, 8, 12, 3)).astype(np.float32)])
    for method, inputs in (("encode", (IMAGE, other)), ("decode", (IMAGE[..., :2], other[..., :2]))):
        one, two = (apply(image, method) for image in inputs)
        np.testing.assert_allclose(one[0], two[0], atol=1e-5)
        assert np.abs(one[1] - two[1]).max() > 1e-2


def test_called_it_decodes_the_means(apply):
    means = apply(IMAGE, "encode")[..., :2]
    np.testing.assert_allclose(apply(IMAGE, None), apply(means, "decode"), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"widths": ()}, "widths of Autoencoder are positive"),
        ({"attention_levels": (4,)}, "attention_levels of Autoencoder lie in 0 to 3"),
        ({"groups": 5}, "128 channels cannot be divided into 5 groups"),
        ({"code_channels": 0}, "code_channels of Autoencoder is at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        Autoencoder(**fields)


def test_an_image_that_the_stride_does_not_divide_is_refused():
    with pytest.raises(InputError, match="an image side of 7 is no multiple of 2"):
        TINY.init(jax.random.key(0), np.zeros((1, 8, 7, 3), np.float32))
