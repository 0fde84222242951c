"""Laws of second stages of ids: ids of each level and the condition are tokens of one table."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.quantisation.posterior import Posterior
from genjax.tasks.first_stage import FirstStage
from tests.tasks.second_stages import AR, AR_SUM


def test_ids_of_each_level_and_the_condition_have_tokens_of_their_own():
    ids = jnp.arange(10).reshape(1, 10) % 5
    tokens = np.asarray(AR_SUM.tokens(ids))
    assert (tokens[0, 0::2] < 5).all() and (tokens[0, 1::2] >= 5).all() and tokens.max() < 10
    np.testing.assert_array_equal(AR_SUM.tokens(ids[:, 3:], 3), tokens[:, 3:])
    assert AR_SUM.prefix_tokens(jnp.array([0, 10])).tolist() == [10, 20]
    logits = jnp.arange(21.0) + jnp.zeros((1, 4, 1))
    assert AR_SUM.logits_of_ids(logits)[0].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]] * 2
    assert AR_SUM.logits_of_ids(logits, jnp.array([1]))[0, 0].tolist() == [5, 6, 7, 8, 9]


def test_a_first_stage_without_ids_is_refused():
    model = replace(AR.first_stage.model, moments=True)
    continuous = FirstStage(path="none", model=model, bottleneck=Posterior())
    with pytest.raises(InputError, match="Autoregressive draws ids, and a first stage of Posterior has none"):
        replace(AR, first_stage=continuous).check()
