"""What it is for bad input to be refused, and where the small system of these tests lives."""

import pytest

from genjax.errors import InputError
from tests.config.room import system

HERE = system.__name__
ALLOWED = ("tests.config.room.", "genjax.")


def refused(function, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence
