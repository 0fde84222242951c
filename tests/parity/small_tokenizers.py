"""Small tokenizers of the kinds of CLIP and T5, in the files that are released with theirs."""

import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

__all__ = ["write_clip", "write_t5"]


def write_clip(directory: Path, texts: list[str]) -> int:
    """vocab.json and merges.txt of pairs of bytes learned from texts; returns the number of ids, the last the end."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.train_from_iterator([text.lower() for text in texts], trainer)
    told = json.loads(tokenizer.to_str())["model"]
    missing = [letter + end for letter in letters for end in ("", "</w>") if letter + end not in told["vocab"]]
    tokens = [*told["vocab"], *missing, "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    pairs = [" ".join(pair) for pair in told["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")
    return len(tokens)


def write_t5(directory: Path, texts: list[str]) -> transformers.T5Tokenizer:
    """tokenizer.json of a unigram model learned from texts; returned is transformers' own."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    theirs = transformers.T5Tokenizer(vocab=pieces, extra_ids=0)
    theirs.save_pretrained(directory)
    return theirs
