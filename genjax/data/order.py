"""The order of examples: epoch after epoch, each a new permutation of all of them.

An epoch's permutation is that of grain's shuffle: a Simon cipher of four rounds (Beaulieu et al. 2013, IACR 2013/404)
permutes blocks of at least 16 bits, and a number that lands outside the examples goes through it again (cycle walking,
Black and Rogaway 2002). Grain walks for each example anew, 65,536 / count steps on average, which of a small set takes
longer than the example itself. Here the whole epoch of a set that fits into 16 bits is walked at once, in a
millisecond or two; of a larger one grain is asked.
"""

from functools import lru_cache

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int, UInt8

__all__ = ["epoch_order", "shuffled"]

BLOCK = 2**16
"""How many numbers the smallest block of the cipher holds."""
ROUNDS = 4


def shuffled(position: int, count: int, seed: int) -> int:
    """Which of `count` examples stands at a position, from 0 on and through all epochs; seed below 2^32."""
    epoch, place = divmod(position, count)
    seed = (seed + epoch) % 2**32
    if count <= BLOCK:
        return int(epoch_order(count, seed)[place])
    return index_shuffle(place, max_index=count - 1, seed=seed, rounds=ROUNDS)


@lru_cache(maxsize=32)  # several loaders, whose threads read ahead over borders of epochs
def epoch_order(count: int, seed: int) -> Int[np.ndarray, " count"]:
    """The permutation of an epoch of at most 65,536 examples, not to be written to. Raises ValueError for more."""
    if count > BLOCK:
        raise ValueError(f"an epoch is ordered at once for at most {BLOCK} examples, not for {count}")
    if count == 1:
        return np.zeros(1, np.int32)
    every = np.arange(BLOCK, dtype=np.int32)
    left, right = (every >> 8).astype(np.uint8), every.astype(np.uint8)
    keys = np.array(_round_keys(seed)).astype(np.uint8)
    for first, second in keys.reshape(-1, 2):
        left = left ^ _mixed(right) ^ first
        right = right ^ _mixed(left) ^ second
    follows = left.astype(np.int32) << 8 | right
    lands = np.where(every < count, every, follows)
    while (lands[follows[:count]] >= count).any():
        lands = lands[lands]  # twice as far
    order = lands[follows[:count]]
    order.setflags(write=False)
    return order


def _mixed(x: UInt8[np.ndarray, " N"]) -> UInt8[np.ndarray, " N"]:
    """Simon's round function in words of 8 bits, of which a turn by 8 is none."""
    return (x << 1 | x >> 7) & x ^ (x << 2 | x >> 6)


def _round_keys(seed: int) -> list[int]:
    """What C++'s `std::seed_seq{seed}` generates, four words of 32 bits (ISO/IEC 14882, [rand.util.seedseq])."""
    size, word, words = ROUNDS, 2**32, [0x8B8B8B8B] * ROUNDS
    near, far = 1, 2  # (size - t) / 2, and t more, for t = (size - 1) / 2

    def folded(x: int) -> int:
        return x ^ x >> 27

    for k in range(size):
        here, there, beyond = k, (k + near) % size, (k + far) % size
        first = 1664525 * folded(words[here] ^ words[there] ^ words[k - 1]) % word
        second = (first + (1 if k == 0 else k + seed if k == 1 else k)) % word
        words[there] = (words[there] + first) % word
        words[beyond] = (words[beyond] + second) % word
        words[here] = second
    for k in range(size):
        here, there, beyond = k, (k + near) % size, (k + far) % size
        first = 1566083941 * folded((words[here] + words[there] + words[k - 1]) % word) % word
        second = (first - k) % word
        words[there] ^= first
        words[beyond] ^= second
        words[here] = second
    return words
