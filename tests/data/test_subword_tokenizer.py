"""Tokenizers of CLIP and T5: from small vocabularies, ids by hand; that they are transformers' is in tests/parity."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from genjax.data import SubwordTokenizer
from genjax.errors import InputError

VOCABULARY = {
    **{letter: i for i, letter in enumerate("abct!")},
    **{f"{letter}</w>": 5 + i for i, letter in enumerate("abct!")},
    "ca": 10,
    "cat</w>": 11,
    "<|startoftext|>": 12,
    "<|endoftext|>": 13,
}
MERGES = "#version: 0.2\nc a\nca t</w>\n"


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    (tmp_path / "merges.txt").write_text(MERGES)
    return lambda length=8, pad=13: SubwordTokenizer(str(tmp_path), length, pad)


@pytest.fixture
def t5(tmp_path):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), ("▁cat", -1.0), ("s", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return lambda length: SubwordTokenizer(str(tmp_path), length, pad=0)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [12, 13]),
        ("cat", [12, 11, 13]),
        ("  A\n CAT!! ", [12, 5, 11, 4, 9, 13]),
        ("cab", [12, 10, 6, 13]),
        ("<|endoftext|>a", [12, 13, 5, 13]),
        ("ü", [12, 13, 13, 13]),  # two bytes that this vocabulary lacks
    ],
)
def test_clip_pairs_bytes_of_words_in_lower_case(clip, text, ids):
    found = clip().encode(text)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, ids + [13] * (8 - len(ids)))
    np.testing.assert_array_equal(clip(pad=0).encode(text), ids + [0] * (8 - len(ids)))


def test_a_text_that_is_too_long_keeps_its_end_and_says_what_is_not_read(clip):
    text = "a Cat b\tCAT a"
    np.testing.assert_array_equal(clip(5).encode(text), [12, 5, 11, 6, 13])
    assert clip(5).left_out(text) == "CAT a"
    assert clip(7).left_out(text) == clip(8).left_out(text) == ""
    np.testing.assert_array_equal(clip(7).encode(text), [12, 5, 11, 6, 11, 5, 13])


def test_a_token_has_its_id(clip):
    assert clip().id_of("cat</w>") == 11 and clip().id_of("dog</w>") is None


def test_t5_has_an_end_and_no_beginning_whatever_the_file_says_of_lengths(t5):
    np.testing.assert_array_equal(t5(8).encode("cat cats cat"), [4, 4, 5, 4, 1, 0, 0, 0])
    np.testing.assert_array_equal(t5(3).encode("cat cats cat"), [4, 4, 1])
    assert t5(3).left_out("cat cats cat") == "s cat"
    np.testing.assert_array_equal(t5(2).encode(""), [1, 0])


def test_a_directory_without_a_tokenizer_or_with_a_damaged_one_is_refused(tmp_path, clip):
    with pytest.raises(InputError, match=r"^there is no tokenizer in .*: tokenizer\.json is accepted, or CLIP's"):
        SubwordTokenizer(str(tmp_path / "none"), 8, 0).encode("a")
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(InputError, match=r"vocab\.json and .*merges\.txt are not of CLIP's tokenizer"):
        clip().encode("a")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a file of a tokenizer"):
        clip().encode("a")
