"""Laws of the figures of pictures: real images score as real images do, and noise does not."""

import numpy as np
import pytest

from genjax.data import Digits
from genjax.metrics.frechet import frechet_distance
from genjax.tasks.image_evaluation import image_figures


@pytest.fixture(scope="module")
def replayed():
    """A real training image for each class in turn."""
    data, by_class = Digits(), {}
    for example in map(data.source("train").__getitem__, range(1257)):
        by_class.setdefault(example["label"], []).append(example["image"])
    labels = np.arange(1000) % 10
    return data, np.stack([by_class[label][i // 10] for i, label in enumerate(labels)]), labels


def test_the_training_set_itself_is_right_realistic_and_memorised(replayed):
    results = image_figures(*replayed)
    assert results["conditional_accuracy"] > 0.97
    assert results["frechet_distance"] < 1.0
    assert results["nearest_neighbour_ratio"] == 0
    assert results["spread"] == pytest.approx(results["spread_of_test"], rel=0.03)
    assert results["classifier_accuracy_on_train"] > 0.97
    assert (results["samples"], results["train_images"], results["test_images"]) == (1000, 1257, 540)


def test_noise_is_neither(replayed):
    data, images, labels = replayed
    noise = 3 * np.random.default_rng(0).normal(size=images.shape)
    results = image_figures(data, images + noise, labels)
    assert results["conditional_accuracy"] < 0.6
    assert results["frechet_distance"] > 50
    assert results["nearest_neighbour_ratio"] > 3


def test_the_distance_of_training_to_held_out_images_stands_beside(replayed):
    data, images, labels = replayed
    results = image_figures(data, images[:20], None)
    assert "conditional_accuracy" not in results
    pixels = []
    for split in ("train", "test"):
        source = data.source(split)
        pixels.append(np.stack([source[i]["image"].ravel() for i in range(len(source))]))
    assert results["frechet_distance_train_to_test"] == pytest.approx(frechet_distance(*pixels))
