"""Laws of what is told of a run."""

import json
import logging
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.runs.outputs import Images, Text
from genjax.training.optimizer import AdamW
from genjax.training.report import Report
from genjax.training.state import initial_state
from genjax.training.task import Train
from genjax.training.update import Told
from tests.training.games import Game, Regression


@dataclass(frozen=True)
class Preview:
    def __call__(self, task, parts):
        yield Images(np.zeros((1, 4, 4, 1)))
        yield Text("once", iter([" upon", " a time"]))


@dataclass(frozen=True, kw_only=True)
class Shown(Regression):
    def request(self, door):
        assert door == "preview"
        return Preview()


TASK = Shown(
    train=Train(steps=20, log_every=4, validate_every=6, sample_every=20, max_skipped=3),
    optimizer=AdamW(learning_rate=1.0, warmup_steps=10),
)
STATE = initial_state(TASK, jax.random.key(0))._replace(updates={"loss": jnp.asarray(5)})
STATE = STATE._replace(ema=STATE.ema | {"w": jnp.full(3, 0.5)})


def step(loss, bad=0):
    weight = jnp.asarray(0.0 if bad else 1.0)
    return Told({"loss": (jnp.asarray(0.0 if bad else loss), weight)}, jnp.asarray(bad))


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_the_mean_since_the_last_one(tmp_path):
    report = Report(TASK, tmp_path, 0)
    for loss in (1.0, 3.0):
        report.read(step(loss))
    assert report.tell(4, STATE, 0)["loss"] == 2.0
    report.read(step(7.0))
    assert report.tell(5, STATE, 2)["loss"] == 7.0
    report.close()
    first, second = lines(tmp_path)
    assert (first["step"], first["loss"], first["learning_rate"]) == (4, 2.0, 0.5)
    assert (second["loss"], second["examples_skipped"]) == (7.0, 2.0)
    assert "validation_loss" not in first


def test_skipped_steps_do_not_enter_the_mean(tmp_path):
    report = Report(TASK, tmp_path, 0)
    for metrics in (step(1.0), step(float("nan"), bad=1), step(3.0)):
        report.read(metrics)
    assert report.tell(4, STATE, 0)["loss"] == 2.0


def test_losses_and_pictures_are_told_when_they_are_due_and_at_the_end(tmp_path):
    report = Report(TASK, tmp_path, 0)
    assert [number for number in range(1, 21) if report.is_due(number)] == [4, 6, 8, 12, 16, 18, 20]
    for number in (6, 20):
        report.read(step(1.0))
        report.tell(number, STATE, 0)
    report.close()
    assert [line["validation_loss"] for line in lines(tmp_path)] == [0.75, 0.75]
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step_000020.png", "step_000020_0000.txt"}
    assert (tmp_path / "samples" / "step_000020_0000.txt").read_text() == "once upon a time"


def test_too_many_skipped_steps_in_a_row_are_an_error(tmp_path):
    report = Report(TASK, tmp_path, 0)
    report.read(step(float("nan"), bad=1))
    report.read(step(float("nan"), bad=2))
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        report.read(step(float("nan"), bad=3))


def test_a_mean_is_of_all_rows_and_not_of_steps(tmp_path):
    """Sums over sums: a step of many rows weighs more."""
    report = Report(TASK, tmp_path, 0)
    for total, weight in ((6.0, 2.0), (1.0, 1.0)):
        report.read(step(1.0)._replace(means={"loss": (jnp.asarray(1.0), jnp.asarray(1.0)),
                                              "error": (jnp.asarray(total), jnp.asarray(weight))}))  # fmt: skip
    assert report.tell(4, STATE, 0)["error"] == pytest.approx(7 / 3)


def test_what_is_not_yet_told_survives_in_the_record_of_a_checkpoint(tmp_path):
    """Killed after step 3 and begun again from its record, a report tells at step 4 what an unbroken one tells."""
    losses = (0.1, 0.7, 1.3, 0.2)
    unbroken, killed = Report(TASK, made(tmp_path / "a"), 0), Report(TASK, made(tmp_path / "b"), 0)
    for loss in losses:
        unbroken.read(step(loss))
    for loss in losses[:3]:
        killed.read(step(loss))
    record = json.loads(json.dumps(killed.untold))
    killed.close()
    resumed = Report(TASK, tmp_path / "b", 3, untold=record)
    resumed.read(step(losses[3]))
    assert resumed.tell(4, STATE, 0)["loss"] == unbroken.tell(4, STATE, 0)["loss"]
    assert resumed.untold == {}


def test_every_player_has_its_own_losses_and_learning_rate(tmp_path):
    task = Game(every=2, train=replace(TASK.train, steps=100))
    report = Report(task, tmp_path, 0)
    one = (jnp.asarray(1.0), jnp.asarray(1.0))
    report.read(Told({"loss/critic": one, "loss/generator": one}, jnp.asarray(0)))
    told = report.tell(4, initial_state(task, jax.random.key(0)), 0)
    assert told["learning_rate/critic"] == pytest.approx(1e-2)
    assert told["learning_rate/generator"] == pytest.approx(0.05)


def test_of_a_player_that_did_not_move_the_log_says_nothing(tmp_path, caplog):
    """metrics.jsonl says null."""
    report = Report(Game(every=2), tmp_path, 0)
    one, none = (jnp.asarray(1.0), jnp.asarray(1.0)), (jnp.asarray(0.0), jnp.asarray(0.0))
    report.read(Told({"loss/critic": one, "loss/generator": none}, jnp.asarray(0)))
    logger = logging.getLogger("genjax")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "genjax"):
        report.tell(2, initial_state(Game(), jax.random.key(0)), 0)
    logger.removeHandler(caplog.handler)
    assert "loss/critic 1" in caplog.text
    assert "generator" not in caplog.text
    assert lines(tmp_path)[0]["loss/generator"] is None


def made(directory):
    directory.mkdir()
    return directory
