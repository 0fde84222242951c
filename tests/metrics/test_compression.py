"""Laws of the bar that compressors set."""

import gzip
import lzma

import numpy as np

from genjax.metrics.compression import compressed_bits_per_byte


def test_random_bytes_do_not_compress_and_repetition_does():
    random = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    assert all(8 <= bits < 8.02 for bits in compressed_bits_per_byte(random).values())
    assert all(bits < 0.05 for bits in compressed_bits_per_byte(b"again and " * 10_000).values())


def test_the_streams_are_those_of_the_two_programs():
    text = b"the quick brown fox " * 50
    bits = compressed_bits_per_byte(text)
    assert len(gzip.compress(text, 9)) * 8 / len(text) == bits["gzip"]
    assert len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(text) == bits["xz"]
