"""What can be said of a text-to-image system in numbers: does it draw what was asked, as real images look, unmemorised?

    conditional accuracy        share of samples that a classifier, trained on the real held-out images alone, takes for
                                the class that the prompt named
    Fréchet distance            of samples to held-out images in raw pixels, beside that of training to held-out images
    nearest-neighbour distance  mean distance of samples to their nearest training image, beside that of held-out
                                images; a ratio far below 1 means memorised

Each goes with its sample count, NFE, guidance and seed, without which it says nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, PyTree

from genjax.metrics.classifier import train_classifier
from genjax.metrics.frechet import frechet_distance
from genjax.metrics.neighbours import nearest_distances
from genjax.tasks.text_to_image import Sampler, TextToImage


def evaluate(
    task: TextToImage, params: PyTree[Array], *, number: int, sampler: Sampler, seed: int
) -> dict[str, float | int | str]:
    """Draw `number` samples, their prompts the classes in turn and each class' captions in turn, and measure them.

    Without classes the prompts are captions of held-out images, and there is no conditional accuracy. Distances are in
    pixels in [-1, 1].
    """
    train, test = (_images(task.data.source(split)) for split in ("train", "test"))
    captions = task.captions()
    prompts, labels = prompts_in_turn(captions, number)
    samples = task.sample(params, prompts, seed=seed, sampler=sampler)
    pixels, train_pixels, test_pixels = (images.reshape(len(images), -1) for images in (samples, train[0], test[0]))

    results: dict[str, float | int | str] = {}
    if task.data.class_names:
        classify = train_classifier(*test)
        results["conditional_accuracy"] = float(np.mean(classify(samples) == labels))
        results["classifier_accuracy_on_train"] = float(np.mean(classify(train[0]) == train[1]))
    results["frechet_distance"] = frechet_distance(pixels, test_pixels)
    results["frechet_distance_train_to_test"] = frechet_distance(train_pixels, test_pixels)
    results["nearest_neighbour_distance"] = float(nearest_distances(pixels, train_pixels).mean())
    results["nearest_neighbour_distance_of_test"] = float(nearest_distances(test_pixels, train_pixels).mean())
    results["nearest_neighbour_ratio"] = (
        results["nearest_neighbour_distance"] / results["nearest_neighbour_distance_of_test"]
    )
    return results | {
        "samples": number,
        "test_images": len(test_pixels),
        "train_images": len(train_pixels),
        "solver": sampler.solver,
        "steps": sampler.steps,
        "nfe": sampler.evaluations,
        "guidance": sampler.guidance,
        "seed": seed,
    }


def prompts_in_turn(captions: Sequence[Sequence[str]], number: int) -> tuple[list[str], np.ndarray]:
    """`number` prompts and the index of the class of each: the classes in turn, and in each round the next caption."""
    classes = np.arange(number) % len(captions)
    rounds = np.arange(number) // len(captions)
    return [captions[c][r % len(captions[c])] for c, r in zip(classes, rounds, strict=True)], classes


def _images(source: Any) -> tuple[np.ndarray, np.ndarray]:
    examples = [example for example in map(source.__getitem__, range(len(source))) if example is not None]
    return np.stack([example["image"] for example in examples]), np.array([example["label"] for example in examples])
