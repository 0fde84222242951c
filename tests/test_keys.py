"""Laws of seeds and of the keys of rows."""

import jax
import numpy as np
import pytest

import sample
from genjax import evaluate
from genjax.errors import InputError
from genjax.keys import LARGEST_SEED, check_seed, row_keys
from genjax.runs.asked import asked
from genjax.training.task import Train


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_a_key_of_a_row_does_not_depend_on_the_rows_beside_it():
    together = data(row_keys(3, np.arange(5)))
    np.testing.assert_array_equal(data(row_keys(3, np.array([4, 2]))), together[np.array([4, 2])])
    np.testing.assert_array_equal(data(row_keys(jax.random.key(3), np.arange(5))), together)
    np.testing.assert_array_equal(together[4], data(jax.random.fold_in(jax.random.key(3), 4)))


def test_every_accepted_seed_has_keys_of_its_own_inside_and_outside_of_a_compiled_function():
    seeds = [0, 1, 2**16, LARGEST_SEED]
    for seed in seeds:
        check_seed("seed", seed)
    plain = [data(row_keys(seed, np.arange(2))) for seed in seeds]
    compiled = jax.jit(lambda seed: jax.random.key_data(row_keys(seed, np.arange(2))))
    np.testing.assert_array_equal(np.stack([compiled(seed) for seed in seeds]), np.stack(plain))
    assert len({keys.tobytes() for keys in plain}) == len(seeds)


IMPOSSIBLE = [-1, LARGEST_SEED + 1, 2**64, 10**30, -(10**30)]


@pytest.mark.parametrize("seed", IMPOSSIBLE)
def test_any_other_seed_is_refused_at_every_door(seed):
    with pytest.raises(InputError, match=f"^seed is from 0 to {LARGEST_SEED}, not {seed}$"):
        Train(seed=seed)
    for run in ("sd3-nano", "gan-digits", "lm-nano"):
        for door, options in {"sample": sample.Options(), "evaluate": evaluate.Options()}.items():
            if (run, door) != ("lm-nano", "evaluate"):  # measures what is held out, without a draw
                with pytest.raises(InputError, match=f"^--seed is from 0 to {LARGEST_SEED}, not {seed}$"):
                    asked(door, ["--workdir", run, f"--seed={seed}"], options)


def test_each_text_has_a_seed_that_is_one():
    """Text i is that of seed + i."""
    words = ["--workdir", "lm-nano", "--num", "2"]
    asked("sample", [*words, f"--seed={LARGEST_SEED - 1}"], sample.Options())
    with pytest.raises(InputError, match=f"^--seed of the last text, .*, is from 0 to {LARGEST_SEED}, not {2**31}$"):
        asked("sample", [*words, f"--seed={LARGEST_SEED}"], sample.Options())
