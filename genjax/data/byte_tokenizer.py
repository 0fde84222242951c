"""Text as bytes: the tokenizer that needs no vocabulary file and knows every text."""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

__all__ = ["ByteTokenizer"]


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8: byte b is id b, and `border` stands before and after every document."""

    border: ClassVar[int] = 256
    """Says both that a document begins, so that its first byte can be predicted, and that it has ended."""
    vocabulary: ClassVar[int] = 257
    """Number of ids."""

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids (n,) int32 of a text, without borders."""
        data = text if isinstance(text, bytes) else text.encode()
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def document(self, text: str | bytes) -> np.ndarray:
        """Ids (n + 2,) int32 of a whole document, between its borders."""
        return np.pad(self.encode(text), 1, constant_values=self.border)

    def stream(self, pieces: Iterable[Iterable[int]]) -> Iterator[str]:
        """The text of ids that come in pieces, up to the first border; a character is given when it is whole."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for ids in map(np.asarray, pieces):
            ended = np.flatnonzero(ids == self.border)
            ids = ids[: ended[0]] if len(ended) else ids
            yield decoder.decode(ids.astype(np.uint8).tobytes())
            if len(ended):
                break
        yield decoder.decode(b"", final=True)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without borders; bytes that are not UTF-8 become the replacement character."""
        ids = np.asarray(ids)
        return ids[ids < self.border].astype(np.uint8).tobytes().decode(errors="replace")
