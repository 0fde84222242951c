"""Laws of the labels of networks."""

import numpy as np
import pytest

from genjax.errors import InputError
from genjax.models.labels import check_label

LABEL = np.zeros(2, np.int32)


def test_there_is_a_label_exactly_where_there_are_classes():
    check_label(3, LABEL)
    check_label(0, None)
    with pytest.raises(InputError, match="^a network of 3 classes needs a label for each row$"):
        check_label(3, None)
    with pytest.raises(InputError, match="^a network with num_classes = 0 takes no label$"):
        check_label(0, LABEL)
