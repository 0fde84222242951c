"""What a text encoder is: a Linen module that turns text into token ids, and ids into what a network is conditioned on.

It is the interface of CLIP and T5 in Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206, section 4).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

__all__ = ["TextEncoder", "padded"]


class TextEncoder(Protocol):
    """What turns text into features of its tokens and one vector of the whole."""

    max_length: int
    """The most tokens T of a text."""

    def tokenize(self, text: str) -> np.ndarray:
        """Token ids (max_length,) int32, padded. Raises InputError for a text that is too long for the encoder."""
        ...

    def init_with_output(self, rngs: Key[Array, ""], tokens: Int[Array, "B T"]) -> tuple[Any, Any]:
        """(what `apply` gives, fresh {"params": p}), as of any Linen module."""
        ...

    def apply(
        self, variables: Mapping[str, PyTree[Array]], tokens: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B P"]]:
        """(context, pooled): features of the tokens, and one vector of the whole."""
        ...


def padded(ids: Sequence[int] | Int[np.ndarray, " N"], length: int) -> Int[np.ndarray, " length"]:
    """Token ids (length,) int32, with id 0 behind the at most `length` ones that are given."""
    tokens = np.zeros(length, np.int32)
    tokens[: len(ids)] = ids
    return tokens
