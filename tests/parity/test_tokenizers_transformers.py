"""Tokenizers equal transformers', read from the same files, for prompts in any script."""

import numpy as np
import pytest

from genjax.data import SubwordTokenizer

transformers = pytest.importorskip("transformers")
from tests.parity.small_tokenizers import write_clip, write_t5  # noqa: E402  (imports transformers)

PROMPTS = [
    "",
    "   ",
    "a photo of a CAT, who's sitting on   the\tmat!!",
    "don't, we'll, I'd, they've — it’s 3,141.59 % of 12½",
    "naïve café ÀÉÎ ß ﬁ Ǆ İstanbul",
    "котята и щенки 小猫在垫子上 子猫 고양이 قطة בית ฅแมว",
    "emoji 🐈‍⬛ 👩🏽‍🚀 ♥️ and <|endoftext|> and <|startoftext|> inside",
    "zero\u200bwidth, e\u0301 composed, \u00a0no-break, \x07 bell \ufffd",
    "underscore_case CamelCase 0x1F http://example.org/?q=1&r=2 #tag @me $5",
    "word " * 120,
]


@pytest.mark.parametrize("length", [77, 12])
def test_clip(tmp_path, length):
    end = write_clip(tmp_path, PROMPTS) - 1
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    check(SubwordTokenizer(str(tmp_path), length, pad=end), theirs)


@pytest.mark.parametrize("length", [77, 12])
def test_t5(tmp_path, length):
    theirs = write_t5(tmp_path, PROMPTS)
    check(SubwordTokenizer(str(tmp_path), length, pad=0), theirs)


def check(ours, theirs):
    for prompt in PROMPTS:
        expected = theirs(prompt, padding="max_length", max_length=ours.length, truncation=True).input_ids
        np.testing.assert_array_equal(ours.encode(prompt), expected, err_msg=prompt)
