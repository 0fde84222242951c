"""The tokenizers of CLIP and T5, from the files that are released with their weights.

    CLIP    vocab.json and merges.txt, or tokenizer.json    bytes paired in lower case, `<|startoftext|>` before a text
    T5      tokenizer.json                                  pieces of a unigram model, `</s>` behind a text

Both run in the `tokenizers` library. A text becomes `length` ids: one that is longer is cut, and keeps its end.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from genjax.errors import InputError

__all__ = ["SubwordTokenizer"]

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # of OpenAI's CLIP
)


@dataclass(frozen=True)
class SubwordTokenizer:
    """A tokenizer from a directory, and how long a text is for the network that reads it."""

    directory: str
    """Holds tokenizer.json, or vocab.json and merges.txt of CLIP."""
    length: int
    """Ids of a text: its own with those that begin and end it, then padding."""
    pad: int
    """Id of padding."""

    def encode(self, text: str) -> np.ndarray:
        """Ids (length,) int32. Raises InputError where the directory holds no tokenizer."""
        ids = _read(self.directory).encode(text).ids
        if len(ids) > self.length:
            ids = [*ids[: self.length - 1], ids[-1]]
        return np.array(ids + [self.pad] * (self.length - len(ids)), np.int32)

    def id_of(self, token: str) -> int | None:
        """The id of a token, if there is such a one. Raises as `encode`."""
        return _read(self.directory).token_to_id(token)

    def left_out(self, text: str) -> str:
        """The end of a text that `encode` does not read; empty where it reads all. Raises as `encode`."""
        encoding = _read(self.directory).encode(text)
        if len(encoding.ids) <= self.length:
            return ""
        begin, _ = encoding.offsets[self.length - 1]
        return text[begin:].strip()


@functools.lru_cache(maxsize=16)
def _read(directory: str) -> Tokenizer:
    path = Path(directory)
    if (path / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the library raises nothing more precise
            raise InputError(f"{path / 'tokenizer.json'} is not a file of a tokenizer: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return _clip(path / "vocab.json", path / "merges.txt")
    raise InputError(
        f"there is no tokenizer in {path}: tokenizer.json is accepted, or CLIP's vocab.json and merges.txt"
    )


def _clip(vocabulary: Path, merges: Path) -> Tokenizer:
    """OpenAI's tokenizer of CLIP (simple_tokenizer.py), but for the repair of damaged Unicode that it does first."""
    try:
        ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        model = models.BPE(ids, pairs, end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=END)
        begin, end = ids[BEGIN], ids[END]
    except Exception as error:  # the library raises nothing more precise
        raise InputError(f"{vocabulary} and {merges} are not of CLIP's tokenizer: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([BEGIN, END])
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, end), (BEGIN, begin), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer
