"""Laws of the evaluation: real images score as real images do, and noise does not."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from genjax.metrics.frechet import frechet_distance
from genjax.tasks.evaluation import evaluate, prompts_in_turn
from genjax.tasks.text_to_image import TextToImage


@dataclass(frozen=True)
class Replay(TextToImage):
    """A system whose samples of a class are real training images of that class, or noise."""

    noise: float = 0.0

    def sample(self, params, prompts, *, seed, sampler=None):
        by_class = {}
        source = self.data.source("train")
        for example in map(source.__getitem__, range(len(source))):
            by_class.setdefault(self.data.class_names[example["label"]], []).append(example["image"])
        images = np.stack([by_class[prompt.split()[-1]][i // 10] for i, prompt in enumerate(prompts)])
        return images + self.noise * np.random.default_rng(seed).normal(size=images.shape)


@pytest.fixture(scope="module")
def replayed(task):
    parts = {field: getattr(task, field) for field in ("model", "text", "sampler", "train")}
    return Replay(**parts)


def test_the_training_set_itself_is_right_realistic_and_memorised(replayed):
    results = evaluate(replayed, {}, number=1000, sampler=replayed.sampler, seed=0)
    assert results["conditional_accuracy"] > 0.97
    assert results["frechet_distance"] < 1.0
    assert results["nearest_neighbour_ratio"] == 0
    assert results["classifier_accuracy_on_train"] > 0.97
    assert (results["samples"], results["train_images"], results["test_images"]) == (1000, 1257, 540)
    assert (results["nfe"], results["guidance"], results["seed"]) == (6, 2.0, 0)


def test_noise_is_neither(replayed):
    results = evaluate(replace(replayed, noise=3.0), {}, number=100, sampler=replayed.sampler, seed=0)
    assert results["conditional_accuracy"] < 0.6
    assert results["frechet_distance"] > 50
    assert results["nearest_neighbour_ratio"] > 3


def test_the_distance_of_training_to_held_out_images_stands_beside(replayed):
    results = evaluate(replayed, {}, number=20, sampler=replayed.sampler, seed=0)
    pixels = []
    for split in ("train", "test"):
        source = replayed.data.source(split)
        pixels.append(np.stack([source[i]["image"].ravel() for i in range(len(source))]))
    assert results["frechet_distance_train_to_test"] == pytest.approx(frechet_distance(*pixels))


def test_prompts_take_classes_and_captions_in_turn():
    prompts, classes = prompts_in_turn([("a", "A"), ("b", "B")], 5)
    assert prompts == ["a", "b", "A", "B", "a"]
    assert classes.tolist() == [0, 1, 0, 1, 0]
