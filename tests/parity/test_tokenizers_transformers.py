"""Tokenizers equal transformers', read from the same files, for prompts in any script."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from genjax.data import SubwordTokenizer

transformers = pytest.importorskip("transformers")

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


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    """A vocabulary of the shape of CLIP's, learned from the prompts."""
    directory = tmp_path_factory.mktemp("clip")
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.train_from_iterator([prompt.lower() for prompt in PROMPTS], trainer)
    told = json.loads(tokenizer.to_str())["model"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    missing = [letter + end for letter in letters for end in ("", "</w>") if letter + end not in told["vocab"]]
    tokens = [*told["vocab"], *missing, "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    pairs = [" ".join(pair) for pair in told["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")
    return directory, len(tokens)


@pytest.mark.parametrize("length", [77, 12])
def test_clip(clip_files, length):
    directory, count = clip_files
    theirs = transformers.CLIPTokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"))
    ours = SubwordTokenizer(str(directory), length, pad=count - 1)
    for prompt in PROMPTS:
        expected = theirs(prompt, padding="max_length", max_length=length, truncation=True).input_ids
        np.testing.assert_array_equal(ours.encode(prompt), expected, err_msg=prompt)


@pytest.mark.parametrize("length", [77, 12])
def test_t5(tmp_path, length):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(PROMPTS, trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    theirs = transformers.T5Tokenizer(vocab=pieces, extra_ids=0)
    theirs.save_pretrained(tmp_path)
    ours = SubwordTokenizer(str(tmp_path), length, pad=0)
    for prompt in PROMPTS:
        expected = theirs(prompt, padding="max_length", max_length=length, truncation=True).input_ids
        np.testing.assert_array_equal(ours.encode(prompt), expected, err_msg=prompt)
