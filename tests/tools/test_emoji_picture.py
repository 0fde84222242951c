"""Laws of README's picture."""

import pytest

from genjax.data import Emoji
from genjax.errors import InputError
from tools.emoji_picture import COLUMNS, HELD_OUT, TRAINED, named


def test_its_rows_are_names_that_were_trained_on_and_one_of_pairs_that_were_not():
    data = Emoji()
    assert len(named(TRAINED, data.source("train"))) == 6 * COLUMNS
    assert len(named(HELD_OUT, data.held_out_pairs())) == COLUMNS
    with pytest.raises(InputError, match="not among the names of this part: woman bowing, light skin tone"):
        named("panda; woman bowing, light skin tone", data.source("train"))
