"""Laws of what is said of drawing ids."""

import pytest

from genjax.errors import InputError
from genjax.language.decoding import TokenSampler
from genjax.tasks.code_sampling import AutoregressiveSampler, MaskedSampler


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


@pytest.mark.parametrize("kind", [AutoregressiveSampler, MaskedSampler])
@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), -1.0])
def test_a_guidance_that_is_no_scale_is_refused(kind, guidance):
    with pytest.raises(InputError, match="guidance is a number from 0"):
        kind(guidance=guidance)


def test_one_program_serves_every_guidance_but_none_and_every_noise():
    led = [MaskedSampler(guidance=w, choice_temperature=tau) for w, tau in ((1.5, 4.5), (3.0, 0.0))]
    assert led[0].program() == led[1].program() != MaskedSampler().program()
    assert led[0].numbers() == {"guidance": 1.5, "choice_temperature": 4.5}
    assert AutoregressiveSampler(grid=(5, 5)).program().grid == (5, 5)
    assert MaskedSampler(steps=4).program() != MaskedSampler(steps=5).program()
