"""What a generator of tokens is told: a prefix of tokens of its own, before those of the picture.

    condition       prefix                                            its null
    ClassToken      one token for each class                          one more
    CaptionTokens   two tokens for each word, and padding             the empty caption
    StartToken      one token                                         the same

A class is told by an id of the same table as the codes, behind theirs, as in MaskGIT (in taming-transformers classes
and codes share their ids). What can be asked for is said in words, as of every condition (conditions.py). The null
replaces a condition now and then in training, so that the same network serves classifier-free guidance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from genjax.data import LabelledImages
from genjax.errors import InputError
from genjax.models.word_encoder import WordEncoder
from genjax.tasks.conditions import Label, Nothing, Text

__all__ = ["CaptionTokens", "ClassToken", "StartToken", "TokenCondition"]


@runtime_checkable
class TokenCondition(Protocol):
    """A kind of prefix; its ids are in [0, vocabulary)."""

    dropout: float
    """Probability of training on the null instead; 0 where there is to be no classifier-free guidance."""
    asked_by: Literal["prompt", "label", "nothing"]
    """The option by which people say what they want."""

    def vocabulary(self, data: LabelledImages) -> int:
        """Number of ids."""

    def prefix(self, example: Any, rng: np.random.Generator, data: LabelledImages) -> Int[np.ndarray, " C"]:
        """The prefix of an example."""

    def asked(self, words: Sequence[str], data: LabelledImages) -> Int[np.ndarray, "N C"]:
        """The prefixes that these words stand for. Raises InputError for words that stand for nothing."""

    def null(self, data: LabelledImages) -> Int[np.ndarray, " C"]:
        """The prefix that tells nothing."""

    def wishes(self, data: LabelledImages) -> list[tuple[str, ...]]:
        """The words for each class in turn, several for one where there are several; or of ten training images."""


@dataclass(frozen=True)
class ClassToken:
    """The class of a picture."""

    dropout: float = 0.1
    """Probability of training on the null class, which guidance needs."""
    asked_by = "label"

    def __post_init__(self):
        Label(self.dropout)

    def vocabulary(self, data: LabelledImages) -> int:
        if not data.class_names:
            raise InputError(
                "condition is ClassToken, and the data has no classes: CaptionTokens and StartToken need none"
            )
        return len(data.class_names) + 1

    def prefix(self, example: Any, rng: np.random.Generator, data: LabelledImages) -> Int[np.ndarray, " C"]:
        return Label().row(example, rng, data)["label"][None]

    def asked(self, words: Sequence[str], data: LabelledImages) -> Int[np.ndarray, "N C"]:
        return Label().asked(words, data)["label"][:, None]

    def null(self, data: LabelledImages) -> Int[np.ndarray, " C"]:
        return Label().null(data)["label"]

    def wishes(self, data: LabelledImages) -> list[tuple[str, ...]]:
        return Label().wishes(data)


@dataclass(frozen=True)
class CaptionTokens:
    """A caption, word by word; each is told by two ids, which together tell V^2 words apart (see `WordEncoder`)."""

    words: int = 12
    """Longest caption; shorter ones are padded to it."""
    rows: int = 1024
    """Ids V of the first and of the second token of a word."""
    dropout: float = 0.1
    """Probability of training on the empty caption, which guidance needs."""
    asked_by = "prompt"

    def __post_init__(self):
        Text(dropout=self.dropout)
        if self.words < 1 or self.rows < 1:
            raise InputError(f"words and rows of CaptionTokens are at least 1, not {self.words} and {self.rows}")

    def vocabulary(self, data: LabelledImages) -> int:
        return 2 * self.rows

    def prefix(self, example: Any, rng: np.random.Generator, data: LabelledImages) -> Int[np.ndarray, " C"]:
        captions = example["captions"]
        return self.asked([captions[rng.integers(len(captions))]], data)[0]

    def asked(self, words: Sequence[str], data: LabelledImages) -> Int[np.ndarray, "N C"]:
        reader = WordEncoder(max_length=self.words)
        ids = np.stack([reader.tokenize(text) for text in words])
        pairs = np.stack([ids % self.rows, self.rows + ids // self.rows % self.rows], axis=-1)
        return pairs.reshape(len(ids), -1).astype(np.int32)

    def null(self, data: LabelledImages) -> Int[np.ndarray, " C"]:
        return self.asked([""], data)[0]

    def wishes(self, data: LabelledImages) -> list[tuple[str, ...]]:
        return Text().wishes(data)


@dataclass(frozen=True)
class StartToken:
    """Nothing but that a picture begins."""

    dropout = 0.0
    asked_by = "nothing"

    def vocabulary(self, data: LabelledImages) -> int:
        return 1

    def prefix(self, example: Any, rng: np.random.Generator, data: LabelledImages) -> Int[np.ndarray, " C"]:
        return self.null(data)

    def asked(self, words: Sequence[str], data: LabelledImages) -> Int[np.ndarray, "N C"]:
        return np.zeros((len(words), 1), np.int32)

    def null(self, data: LabelledImages) -> Int[np.ndarray, " C"]:
        return np.zeros(1, np.int32)

    def wishes(self, data: LabelledImages) -> list[tuple[str, ...]]:
        return Nothing().wishes(data)
