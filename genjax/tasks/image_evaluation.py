"""What can be said of pictures in numbers: do they show what was asked, look as real ones do, and are they new?

    conditional accuracy        share of samples that a classifier, trained on the real held-out images alone, takes for
                                the class that was asked for
    Fréchet distance            of samples to held-out images in raw pixels, beside that of training to held-out images
    spread                      mean distance of two samples of one class, beside that of held-out images: diversity
    nearest-neighbour distance  mean distance of samples to their nearest training image, beside that of held-out
                                images; a ratio far below 1 means memorised

Each goes with its sample count and with how the samples were drawn, without which it says nothing.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from genjax.data import LabelledImages, readable
from genjax.metrics.classifier import train_classifier
from genjax.metrics.frechet import frechet_distance
from genjax.metrics.neighbours import nearest_distances, spread

__all__ = ["image_figures", "labelled_images"]


def image_figures(
    data: LabelledImages, samples: Float[np.ndarray, "N H W C"], labels: Int[np.ndarray, " N"] | None
) -> dict[str, float | int | str]:
    """The figures of samples in [-1, 1]; `labels` are the classes that were asked for, None where there are none.

    Distances are in pixels in [-1, 1].
    """
    train, test = (labelled_images(data.source(split)) for split in ("train", "test"))
    pixels, train_pixels, test_pixels = (images.reshape(len(images), -1) for images in (samples, train[0], test[0]))
    figures: dict[str, float | int | str] = {}
    if labels is not None:
        classify = train_classifier(*test)
        figures["conditional_accuracy"] = float(np.mean(classify(samples) == labels))
        figures["classifier_accuracy_on_train"] = float(np.mean(classify(train[0]) == train[1]))
        if len(labels) > len(np.unique(labels)):
            figures["spread"] = spread(pixels, labels)
            figures["spread_of_test"] = spread(test_pixels, test[1])
    figures["frechet_distance"] = frechet_distance(pixels, test_pixels)
    figures["frechet_distance_train_to_test"] = frechet_distance(train_pixels, test_pixels)
    nearest, nearest_of_test = (nearest_distances(each, train_pixels).mean() for each in (pixels, test_pixels))
    figures["nearest_neighbour_distance"] = float(nearest)
    figures["nearest_neighbour_distance_of_test"] = float(nearest_of_test)
    figures["nearest_neighbour_ratio"] = float(nearest / nearest_of_test)
    return figures | {"samples": len(samples), "test_images": len(test_pixels), "train_images": len(train_pixels)}


def labelled_images(source: Any) -> tuple[Float[np.ndarray, "N H W C"], Int[np.ndarray, " N"]]:
    """All pictures of a source that can be read, and their labels."""
    examples = list(readable(source))
    return np.stack([example["image"] for example in examples]), np.array([example["label"] for example in examples])
