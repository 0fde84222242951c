"""What a denoiser is conditioned on: text, a label, or nothing.

A condition stands between the data and the network. It says what a row of a batch holds of it, how that becomes the
arrays that the network takes after (x_t, t), and what stands for "not told": its null, which replaces it now and then
in training, so that the same network serves classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598).

    condition   a row holds        the network takes                          its null
    Text        token ids (T,)     context (B,L,D) and pooled vector (B,P)    the empty text
    Label       an index ()        indices (B,)                               one more than there are classes
    Nothing     -                  -                                          -

What can be asked for is said in words, whatever the condition is: prompts of a Text, names of classes of a Label.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Key, PyTree

from genjax.config.hints import did_you_mean
from genjax.data import LabelledImages, readable
from genjax.errors import InputError
from genjax.models.byte_encoder import ByteEncoder
from genjax.models.denoising_network import DenoisingNetwork
from genjax.models.text_encoder import TextEncoder
from genjax.training.precision import cast

__all__ = ["Condition", "Label", "Nothing", "Text"]

Rows = dict[str, np.ndarray]


@runtime_checkable
class Condition(Protocol):
    """A kind of condition."""

    dropout: float
    """Probability of training on the null instead; 0 where there is to be no classifier-free guidance."""
    asked_by: Literal["prompt", "label", "nothing"]
    """The option by which people say what they want."""

    def check(self, data: LabelledImages, model: DenoisingNetwork) -> None:
        """Raise InputError where the data does not have what the condition needs, or the network does not know it."""

    def init(self, key: Key[Array, ""], data: LabelledImages) -> dict[str, PyTree[Array]]:
        """Fresh parts of its own, which are trained with the network; none for most conditions."""

    def row(self, example: Any, rng: np.random.Generator, data: LabelledImages) -> Rows:
        """What a row of a batch holds of an example."""

    def asked(self, words: Sequence[str], data: LabelledImages) -> Rows:
        """The rows that these words stand for. Raises InputError for words that stand for nothing."""

    def null(self, data: LabelledImages) -> Rows:
        """One row of the null, with its axis."""

    def encode(self, trained: PyTree[Array], rows: dict[str, Array], dtype: DTypeLike) -> tuple[Array, ...]:
        """What the network takes after (x_t, t), computed in `dtype`."""

    def wishes(self, data: LabelledImages) -> list[tuple[str, ...]]:
        """The words for each class in turn, several for one where there are several; or of ten training images."""


@dataclass(frozen=True)
class Text:
    """A text, read by an encoder that is trained with the network."""

    encoder: TextEncoder = field(default_factory=ByteEncoder)
    dropout: float = 0.1
    """Probability of training on the empty text, which guidance needs."""
    asked_by = "prompt"

    def __post_init__(self):
        _check_dropout(self.dropout)

    def check(self, data: LabelledImages, model: DenoisingNetwork) -> None:
        self.asked([caption for captions in self.wishes(data) for caption in captions], data)

    def init(self, key: Key[Array, ""], data: LabelledImages) -> dict[str, PyTree[Array]]:
        return {"text": self.encoder.init(key, self.null(data)["tokens"])["params"]}

    def row(self, example: Any, rng: np.random.Generator, data: LabelledImages) -> Rows:
        captions = example["captions"]
        return {"tokens": self.encoder.tokenize(captions[rng.integers(len(captions))])}

    def asked(self, words: Sequence[str], data: LabelledImages) -> Rows:
        return {"tokens": np.stack([self.encoder.tokenize(text) for text in words])}

    def null(self, data: LabelledImages) -> Rows:
        return self.asked([""], data)

    def encode(self, trained: PyTree[Array], rows: dict[str, Array], dtype: DTypeLike) -> tuple[Array, ...]:
        return self.encoder.apply({"params": cast(trained["text"], dtype)}, rows["tokens"])

    def wishes(self, data: LabelledImages) -> list[tuple[str, ...]]:
        if not data.class_names:
            source = data.source("train")
            places = [i * len(source) // 10 for i in range(10)]
            return [next(readable(source, chain(range(i, len(source)), range(i))))["captions"] for i in places]
        by_label: dict[int, tuple[str, ...]] = {}
        for example in readable(data.source("test")):
            by_label.setdefault(example["label"], example["captions"])
            if len(by_label) == len(data.class_names):
                break
        return [captions for _, captions in sorted(by_label.items())]


@dataclass(frozen=True)
class Label:
    """The class of an image, by its index; the network embeds it (DiT, Peebles and Xie 2023, section 3.2).

    The network has to know one class more than the data has, the last of which is the null.
    """

    dropout: float = 0.1
    """Probability of training on the null class, which guidance needs."""
    asked_by = "label"

    def __post_init__(self):
        _check_dropout(self.dropout)

    def check(self, data: LabelledImages, model: DenoisingNetwork) -> None:
        classes = len(data.class_names)
        if not classes:
            raise InputError("condition is Label, and the data has no classes: Text and Nothing need none")
        # An index that a network does not know is no error to it, but gives nan.
        if getattr(model, "num_classes", classes) != classes:
            raise InputError(f"model.num_classes is {model.num_classes}, and the data has {classes} classes")
        if getattr(model, "condition", "class") != "class":
            raise InputError(f"model.condition is {model.condition}, and condition Label gives a class")
        if self.dropout and not getattr(model, "null_class", True):
            raise InputError(
                f"condition.dropout is {self.dropout}, and the network has no null class: model.null_class"
            )

    def init(self, key: Key[Array, ""], data: LabelledImages) -> dict[str, PyTree[Array]]:
        return {}

    def row(self, example: Any, rng: np.random.Generator, data: LabelledImages) -> Rows:
        label = example["label"]
        return {"label": np.int32(len(data.class_names) if label < 0 else label)}  # what is not known is not told

    def asked(self, words: Sequence[str], data: LabelledImages) -> Rows:
        return {"label": np.array([_class(word, data.class_names) for word in words], np.int32)}

    def null(self, data: LabelledImages) -> Rows:
        return {"label": np.array([len(data.class_names)], np.int32)}

    def encode(self, trained: PyTree[Array], rows: dict[str, Array], dtype: DTypeLike) -> tuple[Array, ...]:
        return (rows["label"],)

    def wishes(self, data: LabelledImages) -> list[tuple[str, ...]]:
        return [(name,) for name in data.class_names]


@dataclass(frozen=True)
class Nothing:
    """No condition: images as they come."""

    dropout = 0.0
    asked_by = "nothing"

    def check(self, data: LabelledImages, model: DenoisingNetwork) -> None:
        pass

    def init(self, key: Key[Array, ""], data: LabelledImages) -> dict[str, PyTree[Array]]:
        return {}

    def row(self, example: Any, rng: np.random.Generator, data: LabelledImages) -> Rows:
        return {}

    def asked(self, words: Sequence[str], data: LabelledImages) -> Rows:
        return {}

    def null(self, data: LabelledImages) -> Rows:
        return {}

    def encode(self, trained: PyTree[Array], rows: dict[str, Array], dtype: DTypeLike) -> tuple[Array, ...]:
        return ()

    def wishes(self, data: LabelledImages) -> list[tuple[str, ...]]:
        return [("",)]


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout <= 1:
        raise InputError(f"dropout of a condition lies in [0, 1], not at {dropout}")


def _class(word: str, names: Sequence[str]) -> int:
    """The index of a class from its name, or from the index itself."""
    if word in names:
        return names.index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise InputError(
        f"there is no class {word!r}{did_you_mean(word, names)}; there are {len(names)}, by name or index: {listed}"
    )
