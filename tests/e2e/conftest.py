"""What the tests of the doors share."""

import pytest

from tests.e2e.processes import started


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """No process outlives its test, however that ends: one would wait for another that has gone, or train for ever."""
    yield
    while started:
        started.pop().kill()
