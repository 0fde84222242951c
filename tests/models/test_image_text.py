"""Laws of the two towers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from genjax.models.image_text import ImageText
from genjax.models.word_encoder import WordEncoder

# The network takes longer to compile than to run.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)

MODEL = ImageText(features=6, widths=(4, 8), text=WordEncoder(max_length=3, vocabulary=64, width=8, pooled_width=8))
IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
TOKENS = np.stack([MODEL.text.tokenize(text) for text in ("a", "red circle", "circle red", "", "blue circle")])


@pytest.fixture(scope="module")
def params():
    return meta.unbox(jit(MODEL.init)(jax.random.key(0), IMAGES, TOKENS))


@pytest.fixture(scope="module")
def outputs(params):
    return jax.tree.map(np.asarray, jit(MODEL.apply)(params, IMAGES, TOKENS))


def test_features_are_unit_vectors_of_one_width_and_the_temperature_starts_as_clips(outputs):
    image, text, temperature = outputs
    assert image.shape == text.shape == (5, 6) and image.dtype == text.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([image, text]), axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(temperature, 0.07, rtol=1e-6)


@pytest.mark.slow
def test_each_tower_alone_gives_what_both_do_and_a_row_does_not_depend_on_the_others(params, outputs):
    image = MODEL.apply(params, IMAGES[3:4], method=MODEL.encode_image)
    text = MODEL.apply(params, TOKENS[3:4], method=MODEL.encode_text)
    np.testing.assert_allclose(image, outputs[0][3:4], atol=1e-6)
    np.testing.assert_allclose(text, outputs[1][3:4], atol=1e-6)


def test_different_inputs_have_different_features(outputs):
    for features in outputs[:2]:
        assert np.linalg.norm(features[:, None] - features[None], axis=-1)[~np.eye(5, dtype=bool)].min() > 1e-3


def test_every_pixel_is_seen(params):
    gradient = jit(jax.grad(lambda images: MODEL.apply(params, images, method=MODEL.encode_image)[:, 0].sum()))(IMAGES)
    assert (np.abs(np.asarray(gradient)).max(axis=-1) > 0).mean() > 0.99


@pytest.mark.parametrize(("learnt", "used"), [(0.5, 0.5), (0.001, 0.01)])
def test_the_temperature_is_learnt_as_its_logarithm_and_never_below_a_hundredth(params, learnt, used):
    changed = {"params": {**params["params"], "log_temperature": jnp.float32(math.log(learnt))}}
    np.testing.assert_allclose(MODEL.apply(changed, method=MODEL.temperature), used, rtol=1e-6)
