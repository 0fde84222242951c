"""Laws of the sliding window: where it lies, what it sees, and that one of the picture's size changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.language.decoding import TokenSampler
from genjax.language.sliding_window import slide, window_start

GREEDY = TokenSampler(temperature=0.0)
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.mark.parametrize("size", [16, 17, 20, 40])
def test_the_window_lies_where_taming_has_it(size):
    def local(i):
        return i if i <= 8 else 16 - (size - i) if size - i < 8 else 8

    assert [int(window_start(i, size, 16)) for i in range(size)] == [i - local(i) for i in range(size)]


def counting(seen):
    """The next token is one more than the one before, in the order of reading of what is seen; the first is 0."""
    ids = seen.reshape(len(seen), -1)
    before = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return jax.nn.one_hot((before + 1) % 50, 50)


def test_a_window_of_the_pictures_size_sees_all_that_came_before():
    drawn = slide(counting, GREEDY, KEYS, (3, 4), (3, 4))
    np.testing.assert_array_equal(drawn, np.broadcast_to(np.arange(12).reshape(3, 4), (2, 3, 4)))


def test_a_smaller_one_sees_the_places_around_and_no_later_ones():
    def sums(seen):
        """Each token is the sum of those of the window that came before, and one."""
        before = jnp.cumsum(seen.reshape(len(seen), -1), axis=1) - seen.reshape(len(seen), -1)
        return jax.nn.one_hot(before + 1, 4000)

    drawn = np.asarray(slide(sums, GREEDY, KEYS[:1], (3, 4), (2, 2)))[0]
    expected = np.zeros((3, 4), int)
    for row in range(3):
        for column in range(4):
            top, left = (min(max(place - 1, 0), most) for place, most in ((row, 1), (column, 2)))
            seen = expected[top : top + 2, left : left + 2].copy()
            seen.flat[(row - top) * 2 + column - left :] = 0
            expected[row, column] = seen.sum() + 1
    np.testing.assert_array_equal(drawn, expected)


def test_places_are_drawn_with_keys_of_their_number_after_the_prefix():
    logits = jnp.zeros((2, 4, 7))
    drawn = slide(lambda seen: logits, TokenSampler(), KEYS, (2, 2), (2, 2), before=3)
    for place in range(4):
        keys = jax.vmap(jax.random.fold_in, (0, None))(KEYS, 3 + place)
        np.testing.assert_array_equal(drawn.reshape(2, -1)[:, place], TokenSampler()(logits[:, 0], keys))


def test_a_window_larger_than_the_picture_is_refused():
    with pytest.raises(InputError, match="a picture of 2x3 tokens is smaller than the window of 3x3"):
        slide(counting, GREEDY, KEYS, (2, 3), (3, 3))
