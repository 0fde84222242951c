"""Laws of the sizes of networks."""

import pytest
from flax import linen as nn

from genjax.errors import InputError
from genjax.models.sizes import check_sizes


class Network(nn.Module):
    width: int = 2
    depth: int = 0


def test_a_size_below_the_least_is_refused_by_name():
    check_sizes(Network(), width=2, depth=0)
    with pytest.raises(InputError, match="^width of Network is at least 3, not 2$"):
        check_sizes(Network(), depth=0, width=3)
