"""Laws of tasks: their defaults are those of one loss and no state, and misfits are told."""

from dataclasses import dataclass, replace

import pytest

from genjax.errors import InputError
from genjax.runs.parts import Parts
from genjax.training.players import LONE, Player
from genjax.training.task import Task, Train
from tests.training.games import ROWS, Game, Regression, batch


def test_a_lone_loss_moves_everything_and_divides_by_rows_unless_the_task_says_otherwise():
    task = Regression()
    assert task.players() == {LONE: Player(task.optimizer)}
    assert float(Task.totals(task, batch())["rows"]) == ROWS
    parts = task.init(None)
    assert Task.advance(task, parts, {}) is parts.variables
    assert task.sources() == {}


@dataclass(frozen=True, kw_only=True)
class Impossible(Regression):
    def init(self, key):
        raise ValueError("a width of 3 cannot have 2 heads")


def test_sizes_that_do_not_fit_are_refused_in_the_words_of_the_network():
    with pytest.raises(InputError, match="the networks cannot be built: a width of 3 cannot have 2 heads"):
        Impossible().check()


@dataclass(frozen=True, kw_only=True)
class Stranger(Game):
    def init(self, key):
        return Parts({"critic": {}, "painter": {}})


def test_players_that_have_no_part_are_a_defect():
    Game().check()
    with pytest.raises(TypeError, match="painter"):
        Stranger().check()


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 0}, {"ema_decay": 1.0}, {"seed": -1}, {"accumulate": 0}]
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        replace(Train(), **wrong)
