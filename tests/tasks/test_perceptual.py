"""Laws of perceptual losses: weights that come from somewhere, and distances that see what a classifier sees."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from genjax import config
from genjax.errors import InputError
from genjax.models.noisy_classifier import NoisyClassifier
from genjax.parallel.rules import unbox
from genjax.runs.weights import read_weights
from genjax.tasks.noisy_classification import NoisyClassification
from genjax.tasks.perceptual import ClassifierFeatures, PublishedLPIPS
from genjax.training.loop import fit
from genjax.training.task import Train
from tests.interop.test_lpips import torchvision  # noqa: F401 (a fixture)
from tests.tasks.test_tokeniser import MODEL, PLAIN, keys, rows

SMALL = NoisyClassifier(widths=(4, 8), groups=2)
KEY = jax.random.key(0)


@pytest.mark.slow
def test_features_are_of_unit_length_at_every_place_and_averaged_over_taps():
    """By hand, from what the blocks of the classifier give."""
    features = ClassifierFeatures(model=SMALL)
    x, y = jax.random.normal(KEY, (2, 3, 8, 8, 1))
    params = unbox(features.init(KEY, x))
    found = jax.jit(features.distance)(params, x, y)

    @jax.jit
    def taps(x):
        _, seen = SMALL.apply({"params": params}, x, jnp.zeros(3), capture_intermediates=True, mutable="intermediates")
        return [seen["intermediates"][f"residual_{level}_0"]["__call__"][0] for level in (0, 1)]

    expected = []
    for ours, theirs in zip(taps(x), taps(y), strict=True):
        ours, theirs = (np.asarray(h) / np.linalg.norm(h, axis=-1, keepdims=True) for h in (ours, theirs))
        expected.append(np.square(ours - theirs).sum(axis=-1).mean(axis=(1, 2)))
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-4)
    np.testing.assert_allclose(features.distance(params, x, x), 0, atol=1e-9)


@pytest.mark.parametrize("kind", [ClassifierFeatures, PublishedLPIPS])
def test_there_is_no_random_network_where_no_weights_are_named(kind):
    with pytest.raises(InputError, match=f"path of {kind.__name__} is"):
        replace(PLAIN, perceptual=kind()).check()


def test_a_file_of_another_project_is_read_as_it_is(torchvision, tmp_path):  # noqa: F811
    safetensors.numpy.save_file(torchvision, tmp_path / "lpips.safetensors")
    likeness = PublishedLPIPS(str(tmp_path / "lpips.safetensors"))
    shapes = jax.eval_shape(lambda: unbox(likeness.init(KEY, jnp.zeros((1, 16, 16, 3)))))
    params = likeness.source().read_as(shapes)
    np.testing.assert_array_equal(params["lin2"], torchvision["lin2.model.1.weight"].reshape(-1))
    safetensors.numpy.save_file({"features.0.bias": np.zeros(64, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="VGG16"):
        PublishedLPIPS(str(tmp_path / "other.safetensors")).source().read_as(shapes)


@pytest.mark.slow
def test_a_tokeniser_learns_by_a_classifier_that_was_trained_here(tmp_path):
    """The term counts in the loss, its network is copied into the run and holds still, and the run is read alone."""
    train = Train(steps=2, batch_size=8, ema_decay=None, data_threads=0)
    fit(NoisyClassification(model=SMALL, train=train), tmp_path / "classifier")
    likeness = ClassifierFeatures(str(tmp_path / "classifier"), model=SMALL, weight=0.5)
    task = replace(PLAIN, model=MODEL, perceptual=likeness, train=train)
    fit(task, tmp_path / "run")
    read = config.read(tmp_path / "run" / "config.json")
    assert read == task
    (tmp_path / "classifier").rename(tmp_path / "moved")
    parts, _ = read_weights(tmp_path / "run", read)
    there, _ = read_weights(tmp_path / "moved", NoisyClassification(model=SMALL, train=train))
    jax.tree.map(np.testing.assert_array_equal, parts.fixed["perceptual"], there.trained["model"])
    batch = rows()
    sums = jax.jit(task.loss)(parts, batch, keys(), {"rows": 8.0})
    drawn = task.decode(parts, task.code(parts, task.encode(parts, batch["image"])).z_q)
    distance = likeness.distance(parts.fixed["perceptual"], batch["image"], drawn)
    total, weight = sums.metrics["perceptual"]
    np.testing.assert_allclose(total / weight, 0.5 * distance.mean(), rtol=1e-4)
    others = sum(value / count for name, (value, count) in sums.metrics.items())
    np.testing.assert_allclose(sums.losses["autoencoder"], others, rtol=1e-5)
