"""Laws of the figures of captions: real pictures are what they say, and pictures of other captions are not."""

from dataclasses import dataclass

import numpy as np
import pytest

from genjax.data import Examples, ImageExample
from genjax.tasks.caption_figures import caption_figures
from genjax.tasks.image_text_judge import Judge

COUNT = 240


@dataclass(frozen=True)
class Squares:
    """Picture i is a code of i, its caption is its number; two thirds are trained, the rest held out in two ways."""

    image_shape = (4, 4, 1)
    class_names = ()

    def source(self, split):
        return self._examples(range(160) if split == "train" else range(160, 200))

    def held_out_pairs(self):
        return self._examples(range(200, COUNT))

    def _examples(self, rows):
        return Examples(list(rows), lambda i: ImageExample(image=PICTURES[i], captions=(str(i),), label=-1))


PICTURES = np.random.default_rng(0).choice([-1.0, 1.0], (COUNT, 4, 4, 1)).astype(np.float32)
JUDGE = Judge(
    image_features=lambda images: np.asarray(images).reshape(len(images), -1) / 4,
    text_features=lambda texts: np.stack([PICTURES[int(text)].ravel() / 4 for text in texts]),
)
SHARES = ("trained_captions", "held_out_pairs", "held_out_captions")


def figures(draw, **options):
    return caption_figures(Squares(), draw, 60, judge_steps=1, judge=JUDGE, **options)


def real(prompts):
    return np.stack([PICTURES[int(prompt)] for prompt in prompts])


def test_real_pictures_are_what_their_captions_say():
    found = figures(real)
    for name in SHARES:
        assert found[f"retrieval_of_{name}"] == found[f"retrieval_of_{name}_of_real_pictures"] > 0.9
    assert found["frechet_distance"] == pytest.approx(found["frechet_distance_of_real_pictures"])
    assert found["nearest_neighbour_ratio"] == 0  # they are training pictures
    assert (found["samples_of_trained_captions"], found["samples_of_held_out_pairs"]) == (60, 40)


def test_pictures_of_other_captions_are_not():
    found = figures(lambda prompts: real(prompts[1:] + prompts[:1]))
    assert all(found[f"retrieval_of_{name}"] < 0.1 for name in SHARES)


def test_only_what_fails_is_told_to_fail():
    """A system that draws what it was trained on, and nothing of what was held out."""
    found = figures(
        lambda prompts: np.where(np.array([int(p) < 160 for p in prompts])[:, None, None, None], real(prompts), 0)
    )
    assert found["retrieval_of_trained_captions"] > 0.9
    assert found["retrieval_of_held_out_pairs"] == found["retrieval_of_held_out_captions"] == 0


def test_pictures_that_look_otherwise_are_far():
    noise = np.random.default_rng(1).normal(size=(60, 4, 4, 1)) * 3
    found = figures(lambda prompts: noise[: len(prompts)])
    assert found["frechet_distance"] > 2 * found["frechet_distance_of_real_pictures"]
    assert found["nearest_neighbour_ratio"] > 1
