"""Laws of what is said of drawing ids."""

import pytest

from genjax.errors import InputError
from genjax.language.decoding import TokenSampler
from genjax.tasks.token_sampling import AutoregressiveSampler, MaskedSampler


@pytest.mark.parametrize("kind", [AutoregressiveSampler, MaskedSampler])
def test_its_filters_are_those_of_tokens(kind):
    assert kind(temperature=0.7, top_k=3, guidance=2.0).choose() == TokenSampler(temperature=0.7, top_k=3)
    with pytest.raises(InputError, match="top_p is 2"):
        kind(top_p=2.0)


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("choice_temperature", -1.0), ("choice_temperature", float("nan"))]
)
def test_steps_and_noise_that_cannot_be_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        MaskedSampler(**{field: value})
