"""Bad input is one exception, whose text is the sentence, and names the field that is refused by its place."""

import functools
import operator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from genjax import config
from genjax.config.tree import walk
from genjax.errors import InputError, placed
from train import Options

CONFIGS = Path(__file__).parents[1] / "configs"
REFUSED = {
    "gan.py:toy": {
        "train.steps": 0, "train.ema_decay": 2.0, "train.seed": -1, "checkpoint.every": 0, "checkpoint.keep": 0,
        "mesh.fsdp": 0, "data.spacing": 0.0, "data.noise": 0.0, "data.points": 0, "penalty.weight": -1.0,
        "optimizer.learning_rate": 0.0, "critic_optimizer.warmup_steps": -1,
    },
    "lm.py": {"data.length": 1, "data.test_fraction": 1.0},
    "sd3.py": {"sampler.steps": 0, "sampler.grid.shift": 0.0, "data.image_size": 0},
    "sd3.py:emoji": {"data.size": 0},
    "wgan.py:clip": {"constraint.limit": 0.0},
}  # fmt: skip
PLACES = [(spec, name, value) for spec, fields in REFUSED.items() for name, value in fields.items()]


def test_callers_that_know_nothing_of_genjax_catch_bad_input_as_a_value_error():
    with pytest.raises(ValueError, match="^depth is at least 1, not 0$"):
        raise InputError("depth is at least 1, not 0")


@pytest.mark.parametrize(("spec", "name", "value"), PLACES, ids=[name for _, name, _ in PLACES])
def test_a_dataclass_names_its_field_and_the_config_its_place(spec, name, value):
    """From Python; from the command line, from changes and from a record."""
    task, _ = config.load(f"{CONFIGS}/{spec}")
    holder, _, field = name.rpartition(".")
    with pytest.raises(InputError, match=f"^{field} "):
        replace(dict(walk(task))[holder].value, **{field: value})
    with pytest.raises(InputError, match=f"^{name} "):
        config.parse_with_config(["--config", f"{CONFIGS}/{spec}", f"--{name}={value}"], Options())
    with pytest.raises(InputError, match=f"^{name} "):
        config.override(task, {name: value})
    record = config.to_dict(task)
    functools.reduce(operator.getitem, holder.split("."), record)[field] = value
    with pytest.raises(InputError, match=f"^{name} "):
        config.from_dict(record)


@dataclass(frozen=True)
class Held:
    path: str = ""


@pytest.mark.parametrize(
    ("where", "sentence", "told"),
    [
        ("judge.data", "path: /nowhere does not exist", "judge.data.path: /nowhere does not exist"),
        ("judge.data", "path is not set", "judge.data.path is not set"),
        ("judge.data", "paths are not set", "paths are not set"),
        ("judge.data", "/nowhere: not a whole tar", "/nowhere: not a whole tar"),
        ("", "path is not set", "path is not set"),
    ],
)
def test_what_only_the_machine_can_tell_is_placed_by_who_asks(where, sentence, told):
    with pytest.raises(InputError) as refused, placed(where, Held):
        raise InputError(sentence)
    assert str(refused.value) == told
