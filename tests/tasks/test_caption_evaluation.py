"""Laws of the figures of pictures drawn from captions, with a judge that knows every picture by heart."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from genjax.data import Examples, ImageExample
from genjax.errors import InputError
from genjax.models.word_encoder import WordEncoder
from genjax.tasks import text_to_image
from genjax.tasks.caption_evaluation import AMONG, caption_figures, chosen_parts, judge_of
from genjax.tasks.image_text_judge import Judge
from genjax.tasks.text_to_image import JudgeCaptions, JudgeImages

SHAPE = (8, 8, 1)
NUMBERS = {"train": range(60), "test": range(60, 75), "pairs": range(75, 80)}


def picture(caption):
    """Noise of its own for each caption."""
    return np.random.default_rng(int(caption.split()[-1])).uniform(-1, 1, SHAPE).astype(np.float32)


def flat(images):
    rows = np.reshape(images, (len(images), -1))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def drawn(captions):
    return np.stack([picture(caption) for caption in captions])


JUDGE = Judge(flat, lambda captions: flat(drawn(captions)))


@dataclass(frozen=True)
class Noises:
    """Pictures with captions and no classes; two of each caption, and some names that are held out."""

    image_shape = SHAPE
    class_names = ()

    def part(self, name):
        def read(number):
            return ImageExample(image=picture(f"noise {number}"), captions=(f"noise {number}", "any"), label=-1)

        return Examples([*NUMBERS[name], *NUMBERS[name]], read)

    def source(self, split):
        return self.part(split)


class WithPairs(Noises):
    def held_out_pairs(self):
        return self.part("pairs")


@pytest.fixture(scope="module")
def replayed():
    """Each caption's own real picture for a sample."""
    return caption_figures(WithPairs(), drawn, JUDGE, num=55)


def test_real_pictures_score_as_real_pictures_do(replayed):
    for part in ("trained", "held_out", "held_out_pairs"):
        assert replayed[f"retrieval_{part}"] == replayed[f"retrieval_{part}_real_pictures"] == 1.0
    assert replayed["frechet_distance"] == replayed["frechet_distance_train_to_test"] > 0
    assert replayed["nearest_neighbour_ratio"] == 0


def test_each_part_has_the_samples_it_has_captions_for_and_is_sought_among_no_more_than_fifty(replayed):
    samples = [replayed[f"retrieval_{part}_samples"] for part in ("trained", "held_out", "held_out_pairs")]
    among = [replayed[f"retrieval_{part}_among"] for part in ("trained", "held_out", "held_out_pairs")]
    assert (samples, among) == ([55, 15, 5], [AMONG, 15, 5])
    assert (replayed["train_images"], replayed["test_images"]) == (120, 30)


def test_pictures_of_other_captions_are_found_by_none_and_noise_lies_far_from_all():
    figures = caption_figures(WithPairs(), lambda captions: drawn(captions[1:] + captions[:1]), JUDGE, num=10)
    assert figures["retrieval_trained"] == figures["retrieval_held_out"] == 0
    noisy = caption_figures(WithPairs(), lambda captions: 9 * drawn(captions) + 9, JUDGE, num=60)
    assert noisy["nearest_neighbour_ratio"] > 3
    assert noisy["frechet_distance"] > 1.2 * noisy["frechet_distance_train_to_test"]


def test_the_parts_are_of_different_captions_the_same_at_every_call_and_in_no_order():
    first, second = (
        {name: [e["captions"][0] for e in part] for name, part in chosen_parts(WithPairs(), 99)} for _ in "ab"
    )
    assert first == second
    for name, part in (("trained", "train"), ("held_out", "test"), ("held_out_pairs", "pairs")):
        assert set(first[name]) == {f"noise {number}" for number in NUMBERS[part]}
        assert len(first[name]) == len(NUMBERS[part])
    assert first["trained"] != sorted(first["trained"], key=lambda caption: int(caption.split()[-1]))
    assert "held_out_pairs" not in dict(chosen_parts(Noises(), 3))


def test_data_of_one_caption_are_refused(monkeypatch):
    monkeypatch.setitem(NUMBERS, "train", range(1))
    with pytest.raises(InputError, match="1 different captions"):
        list(chosen_parts(Noises(), 5))


def test_the_judge_reads_captions_of_any_length(monkeypatch):
    monkeypatch.setattr("genjax.tasks.caption_evaluation.train_judge", lambda data, steps, model: model.text)
    monkeypatch.setattr("genjax.tasks.caption_evaluation.words", lambda text: ["word"] * 30)
    assert judge_of(Noises(), steps=1) == WordEncoder(max_length=30, pooled_width=128)


# ---------------------------------------------------------------------- the request


def test_which_figures_are_asked_for_follows_from_the_data(task):
    assert isinstance(task.request("evaluate"), JudgeImages)
    assert isinstance(replace(task, data=Noises()).request("evaluate"), JudgeCaptions)


def test_without_classes_samples_and_previews_are_of_captions_to_train_on(task):
    captions = [captions[0] for captions in replace(task, data=Noises()).captions()]
    assert captions == [f"noise {number}" for number in (*range(0, 60, 12), *range(0, 60, 12))]


def test_the_evaluation_measures_what_the_system_samples_and_says_how(task, parts, monkeypatch):
    monkeypatch.setattr(text_to_image, "judge_of", lambda data, steps: JUDGE)
    blind = replace(task, data=Noises())
    request = replace(blind.request("evaluate"), num=8, judge_steps=7)
    (figures,) = request(blind, parts)
    assert figures.values["retrieval_trained_samples"] == figures.values["retrieval_held_out_samples"] == 8
    assert (figures.values["nfe"], figures.values["judge_steps"], figures.values["seed"]) == (6, 7, 0)
    assert all(np.isfinite(value) for value in figures.values.values() if not isinstance(value, str))


@pytest.mark.parametrize("wrong", [{"num": 1}, {"judge_steps": 0}, {"steps": 0}])
def test_what_cannot_be_judged_is_refused_before_weights_are_read(task, wrong):
    with pytest.raises(InputError):
        replace(replace(task, data=Noises()).request("evaluate"), **wrong).check(task)
