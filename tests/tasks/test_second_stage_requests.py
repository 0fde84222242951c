"""Laws of what second stages are asked for."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.parallel.rules import unbox
from genjax.tasks.code_sampling import AutoregressiveSampler, MaskedSampler
from genjax.tasks.second_stage_requests import (
    DrawCodes,
    DrawCodesOfClass,
    DrawCodesOfPrompt,
    JudgeCodes,
    JudgeCodesOfCaptions,
)
from genjax.tasks.token_conditions import CaptionTokens, StartToken
from tests.tasks.second_stages import AR, MASKED

CAPTIONED = replace(AR, condition=CaptionTokens(words=6, rows=8))


@pytest.fixture(scope="module")
def parts():
    return unbox(jax.jit(AR.init)(jax.random.key(0)))


def test_each_condition_is_asked_by_its_own_option():
    assert isinstance(AR.request("sample"), DrawCodesOfClass)
    assert isinstance(CAPTIONED.request("sample"), DrawCodesOfPrompt)
    assert type(replace(AR, condition=StartToken()).request("sample")) is DrawCodes
    assert isinstance(CAPTIONED.request("evaluate"), JudgeCodes)  # its pictures have classes
    assert isinstance(MASKED.request("evaluate").sampler, MaskedSampler)


def test_samples_are_those_of_the_words_in_turn(parts):
    (drawn,) = DrawCodesOfClass(sampler=AR.sampler, num=3, seed=4)(AR, parts)
    np.testing.assert_array_equal(drawn.images, AR.sample(parts, ["zero", "one", "two"], seed=4))
    (sevens,) = DrawCodesOfClass(sampler=AR.sampler, num=2, label="seven")(AR, parts)
    np.testing.assert_array_equal(sevens.images, AR.sample(parts, ["seven"] * 2, seed=0))
    assert "16 ids one after the other" in sevens.said


def test_figures_are_of_both_stages(parts):
    (found,) = JudgeCodes(sampler=AR.sampler, num=20)(AR, parts)
    assert {"conditional_accuracy", "frechet_distance", "first_stage/psnr", "first_stage/usage"} <= set(found.values)
    assert found.values["samples"] == 20


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (DrawCodes(sampler=AR.sampler, num=0), "--num is the number of samples"),
        (DrawCodes(sampler=AR.sampler, seed=-1), "--seed is from 0"),
        (DrawCodes(sampler=MaskedSampler()), "--sampler of this run is AutoregressiveSampler, not MaskedSampler"),
        (DrawCodesOfClass(sampler=AR.sampler, label="ten"), "there is no class 'ten'"),
        (DrawCodes(sampler=AutoregressiveSampler(grid=(1, 1))), "sampler.grid is 1x1 ids"),
        (JudgeCodes(sampler=AutoregressiveSampler(grid=(5, 6))), "another size than the real ones"),
        (JudgeCodesOfCaptions(sampler=AutoregressiveSampler(grid=(5, 6))), "another size than the real ones"),
        (JudgeCodes(sampler=AR.sampler, num=1), "at least 2 for a covariance"),
        (JudgeCodesOfCaptions(sampler=AR.sampler, judge_steps=0), "--judge_steps at least 1"),
    ],
)
def test_what_is_asked_wrongly_is_refused(request_, sentence):
    with pytest.raises(InputError, match=sentence):
        request_.check(AR)
