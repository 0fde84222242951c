"""Laws of what a denoising system is asked: the doors give what the system samples, and how it was drawn."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from genjax.data import Npz
from genjax.errors import InputError
from genjax.tasks import denoising_requests
from genjax.tasks.denoising_requests import OF_SAMPLER, DrawPrompt, JudgeCaptions, JudgeImages, in_turn
from genjax.tasks.sampling import Worse


def test_the_preview_is_a_picture_with_a_column_per_class(task, parts):
    (picture,) = task.request("preview")(task, parts)
    assert picture.grid().shape == (4 * 9 + 1, 10 * 9 + 1, 1)


def test_what_is_drawn_at_the_door_is_what_the_system_samples(task, parts):
    request = replace(task.request("sample"), prompt="a handwritten seven", num=3, trajectory=True)
    pictures, way = request(task, parts)
    np.testing.assert_allclose(
        pictures.images, task.sample(parts.trained, ["a handwritten seven"] * 3, seed=0), atol=1e-6
    )
    assert pictures.captions == ["a handwritten seven"] * 3
    assert way.frames.shape == (task.sampler.steps + 1, 3, 8, 8, 1)
    assert (request.steps, request.guidance) == (task.sampler.steps, task.sampler.guidance)


def test_without_a_prompt_the_captions_are_drawn_in_turn(task):
    prompts = replace(task.request("sample"), num=12).words(task)
    assert prompts[:2] == ["a handwritten zero", "a handwritten one"]
    assert prompts[10] == prompts[0]


def test_the_evaluation_says_how_the_samples_were_drawn(task, parts):
    (figures,) = replace(task.request("evaluate"), num=20)(task, parts)
    assert (figures.values["nfe"], figures.values["guidance"], figures.values["seed"]) == (6, 2.0, 0)
    assert figures.values["samples"] == 20
    assert 0 <= figures.values["conditional_accuracy"] <= 1


@pytest.mark.parametrize(("request_of", "wrong"), [(DrawPrompt, {"num": 0}), (DrawPrompt, {"prompt": "x" * 99}),
                         (DrawPrompt, {"steps": 0}), (JudgeImages, {"num": 1})])  # fmt: skip
def test_what_cannot_be_drawn_is_refused_before_weights_are_read(task, request_of, wrong):
    door = "sample" if request_of is DrawPrompt else "evaluate"
    request = replace(task.request(door), **wrong)
    assert isinstance(request, request_of)
    with pytest.raises(InputError):
        request.check(task)


@pytest.mark.slow
def test_a_worse_run_leads_and_one_of_another_kind_is_refused(task, parts, monkeypatch, tmp_path):
    """Told beside the figures, and refused before weights are read."""
    monkeypatch.setattr(denoising_requests, "find_run", lambda path: Found(tmp_path))
    monkeypatch.setattr(denoising_requests.config, "read", lambda path: task)
    request = replace(task.request("sample"), num=3, worse="runs/small", worse_scale=1.5)
    request.check(task)
    less = jax.tree.map(lambda leaf: 0.7 * leaf, parts)
    monkeypatch.setattr(denoising_requests, "read_weights", lambda *_: (less, None))
    (pictures,) = request(task, parts)
    words = request.words(task)
    led = task.sample(parts.trained, words, seed=0, worse=Worse(task, less.trained, 1.5))
    np.testing.assert_allclose(pictures.images, led, atol=1e-6)
    assert np.abs(led - task.sample(parts.trained, words, seed=0)).max() > 1e-3
    judged = replace(task.request("evaluate"), worse="runs/small", worse_scale=1.5, interval=(0.1, 0.9), rescale=0.5)
    told = judged.told(task)
    assert (told["worse"], told["worse_scale"]) == ("runs/small", 1.5)
    assert (told["interval"], told["rescale"], told["nfe"]) == ([0.1, 0.9], 0.5, 9)
    assert "clip_denoised" not in told
    assert replace(judged, clip_denoised=0.5).told(task)["clip_denoised"] == 0.5
    assert replace(judged, clip_denoised=0.5).sampler(task).clip_denoised == 0.5
    assert not {"interval", "rescale"} & replace(judged, guidance=1.0).told(task).keys()
    assert (judged.sampler(task).interval, judged.sampler(task).rescale) == ((0.1, 0.9), 0.5)
    monkeypatch.setattr(denoising_requests.config, "read", lambda path: object())
    with pytest.raises(InputError, match="--worse is a run of Denoising, and runs/small is one of object"):
        judged.check(task)


@pytest.mark.parametrize("judge", [JudgeImages, JudgeCaptions])
def test_figures_are_of_samples_that_the_worse_run_has_led(task, parts, monkeypatch, judge):
    asked = {name: getattr(task.sampler, name) for name in OF_SAMPLER}
    request, worse, seen = judge(num=2, worse="runs/small", **asked), Worse(task, parts.trained, 2.0), []

    class Sampled(Exception):
        pass

    def sample(*_, worse, **__):
        seen.append(worse)
        raise Sampled

    def caption_figures(data, draw, *_, **__):
        return draw(["a"])

    monkeypatch.setattr(judge, "led", lambda self, task: worse)
    monkeypatch.setattr(type(task), "sample", sample)
    monkeypatch.setattr(denoising_requests, "caption_figures", caption_figures)
    with pytest.raises(Sampled):
        list(request(task, parts))
    assert seen == [worse]


class Found(NamedTuple):
    directory: Path


def test_prompts_take_classes_and_captions_in_turn():
    prompts, classes = in_turn([("a", "A"), ("b", "B")], 5)
    assert prompts == ["a", "b", "A", "B", "a"]
    assert classes.tolist() == [0, 1, 0, 1, 0]


def test_without_classes_captions_are_judged(task, parts, monkeypatch, tmp_path):
    """With how they were drawn; the drawing is that of the task."""
    path = tmp_path / "some.npz"
    np.savez(path, images=np.zeros((8, 8, 8, 1), np.float32), captions=np.array(["a", "b"] * 4))
    asked = replace(task, data=Npz(path=str(path))).request("evaluate")
    assert isinstance(asked, JudgeCaptions)
    seen = {}

    def figures(data, draw, number, *, judge_steps, seed):
        seen.update(number=number, judge_steps=judge_steps, drawn=draw(["seven", "one"]))
        return {"retrieval_of_trained_captions": 0.5}

    monkeypatch.setattr(denoising_requests, "caption_figures", figures)
    (told,) = replace(asked, num=3, judge_steps=7)(task, parts)
    assert (seen["number"], seen["judge_steps"]) == (3, 7)
    np.testing.assert_allclose(
        seen["drawn"], np.clip(task.sample(parts.trained, ["seven", "one"], seed=0), -1, 1), atol=1e-6
    )
    assert told.values["nfe"] == 6
    with pytest.raises(InputError, match="--judge_steps at least 1"):
        replace(asked, judge_steps=0).check(task)
