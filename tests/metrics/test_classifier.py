"""Laws of the classifier that judges samples."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from genjax.metrics.classifier import train_classifier


@pytest.fixture(scope="module")
def splits():
    """1,257 and 540 digits as images (N, 8, 8, 1) in [-1, 1], and their labels."""
    digits = load_digits()
    images = (digits.images[..., None] / 8 - 1).astype(np.float32)
    return train_test_split(images, digits.target, test_size=0.3, stratify=digits.target, random_state=0)


def test_trained_on_540_digits_it_knows_the_other_1257(splits):
    train_images, test_images, train_labels, test_labels = splits
    classify = train_classifier(test_images, test_labels)
    assert np.mean(classify(train_images) == train_labels) >= 0.985


def test_training_is_deterministic(splits):
    train_images, test_images, _, test_labels = splits
    noise = np.random.default_rng(0).uniform(-1, 1, train_images[:200].shape)
    first, second = (train_classifier(test_images, test_labels)(noise) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_range_of_the_pixels_does_not_matter(splits):
    train_images, test_images, _, test_labels = splits
    classify, classify_levels = (train_classifier(scale(test_images), test_labels) for scale in (lambda x: x, levels))
    np.testing.assert_array_equal(classify(train_images), classify_levels(levels(train_images)))


def levels(images: np.ndarray) -> np.ndarray:
    return (images + 1) * 8
