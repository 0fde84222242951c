"""Laws of the byte tokenizer."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genjax.data.byte_tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


@given(st.text())
def test_decoding_undoes_encoding_of_every_text(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.decode(TOKENIZER.document(text)) == text


def test_ids_are_the_bytes_of_utf_8_and_documents_stand_between_borders():
    np.testing.assert_array_equal(TOKENIZER.encode("é!"), [0xC3, 0xA9, 0x21])
    np.testing.assert_array_equal(TOKENIZER.document(b"\xff"), [256, 255, 256])
    assert TOKENIZER.encode("é").dtype == np.int32


def test_every_sequence_of_ids_is_some_text():
    assert TOKENIZER.decode([256, 0xC3, 0x28, 0xFF]) == "\ufffd(\ufffd"
    assert TOKENIZER.decode(np.arange(TOKENIZER.vocabulary))[65:68] == "ABC"
    assert TOKENIZER.decode([]) == ""


def test_a_stream_gives_whole_characters_and_ends_at_the_border():
    ids = np.concatenate([ByteTokenizer().encode("aü→b"), [ByteTokenizer.border, 97]])
    for size in (1, 2, 5, 100):
        pieces = [ids[i : i + size] for i in range(0, len(ids), size)]
        texts = list(ByteTokenizer().stream(pieces))
        assert "".join(texts) == "aü→b"
        assert "\ufffd" not in "".join(texts)
    assert "".join(ByteTokenizer().stream([ids[:2]])) == "a\ufffd"
