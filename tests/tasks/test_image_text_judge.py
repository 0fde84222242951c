"""Laws of the judge, on pictures of one colour each."""

from dataclasses import dataclass

import numpy as np
import pytest

from genjax.data import Examples, ImageExample
from genjax.errors import InputError
from genjax.metrics.retrieval import retrieval_accuracy
from genjax.models.image_text import ImageText
from genjax.models.word_encoder import WordEncoder
from genjax.tasks.image_text_judge import ROWS, real_pictures, train_judge

COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "white": (1, 1, 1), "black": (-1, -1, -1)}
MODEL = ImageText(features=8, widths=(4, 8), text=WordEncoder(max_length=3, vocabulary=64, width=8, pooled_width=8))


@dataclass(frozen=True)
class Colours:
    """Three colours to train on, one to test on, one in a held-out part: a judge has to know all."""

    image_shape = (4, 4, 3)
    class_names = ()

    def _examples(self, names) -> Examples[ImageExample]:
        def read(name):
            image = np.broadcast_to(np.array(COLOURS[name], np.float32), (4, 4, 3))
            return ImageExample(image=image, captions=(f"{name} paper", name), label=-1)

        return Examples(names, read)

    def source(self, split):
        return self._examples({"train": ["red", "green", "blue"], "test": ["white"]}[split])

    def held_out_pairs(self):
        return self._examples(["black"])


IMAGES = np.stack([example["image"] for example in real_pictures(Colours())])


@pytest.fixture(scope="module")
def judge():
    return train_judge(Colours(), steps=300, seed=0, batch_size=5, model=MODEL)


def test_a_trained_judge_finds_the_caption_of_every_real_picture_under_each_of_its_names(judge):
    images = judge.image_features(IMAGES)
    for captions in (list(COLOURS), [f"{name} paper" for name in COLOURS]):
        assert retrieval_accuracy(images, judge.text_features(captions), among=5) == 1.0


def test_it_is_trained_on_both_splits_and_on_the_held_out_pairs():
    assert [example["captions"][1] for example in real_pictures(Colours())] == list(COLOURS)


def test_features_are_unit_vectors_whatever_the_number_of_rows(judge):
    many = judge.image_features(np.resize(IMAGES, (ROWS + 3, 4, 4, 3)))
    assert many.shape == (ROWS + 3, 8)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(many[ROWS:], np.resize(judge.image_features(IMAGES), (ROWS + 3, 8))[ROWS:], atol=1e-6)


def test_the_same_seed_gives_the_same_judge(judge):
    again, other = (train_judge(Colours(), steps=300, seed=seed, batch_size=5, model=MODEL) for seed in (0, 1))
    np.testing.assert_array_equal(judge.image_features(IMAGES), again.image_features(IMAGES))
    assert np.abs(judge.image_features(IMAGES) - other.image_features(IMAGES)).max() > 1e-3


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(batch_size=1)])
def test_a_judge_that_would_learn_nothing_is_refused(wrong):
    with pytest.raises(InputError, match="1 step and 2 pictures"):
        train_judge(Colours(), **wrong)
