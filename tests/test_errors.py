"""Bad input is one exception, whose text is the sentence."""

import pytest

from genjax.errors import InputError


def test_callers_that_know_nothing_of_genjax_catch_bad_input_as_a_value_error():
    with pytest.raises(ValueError, match="^depth is at least 1, not 0$"):
        raise InputError("depth is at least 1, not 0")
