"""Laws of what is told of a run."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.training.loop import Train
from genjax.training.optimizer import AdamW
from genjax.training.report import Report

TRAIN = Train(steps=20, log_every=4, validate_every=6, sample_every=20, max_skipped=3)
TASK = SimpleNamespace(
    train=TRAIN,
    optimizer=AdamW(learning_rate=1.0, warmup_steps=10),
    validate=lambda ema: {"validation_loss": float(ema["w"])},
    preview=lambda ema: np.zeros((4, 4, 1), np.uint8),
)
STATE = SimpleNamespace(updates=jnp.asarray(5), ema={"w": jnp.asarray(0.25)})


def step(loss, bad=0):
    return {"loss": jnp.asarray(loss), "skipped_in_a_row": jnp.asarray(bad)}


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_the_mean_since_the_last_one(tmp_path):
    report = Report(TASK, tmp_path, 0)
    for loss in (1.0, 3.0):
        report.read(step(loss))
    assert report.tell(4, STATE, 0) == 2.0
    report.read(step(7.0))
    assert report.tell(5, STATE, 2) == 7.0
    report.close()
    first, second = lines(tmp_path)
    assert (first["step"], first["loss"], first["learning_rate"]) == (4, 2.0, 0.5)
    assert (second["loss"], second["examples_skipped"]) == (7.0, 2.0)
    assert "validation_loss" not in first


def test_skipped_steps_do_not_enter_the_mean(tmp_path):
    report = Report(TASK, tmp_path, 0)
    for metrics in (step(1.0), step(float("nan"), bad=1), step(3.0)):
        report.read(metrics)
    assert report.tell(4, STATE, 0) == 2.0


def test_losses_and_pictures_are_told_when_they_are_due_and_at_the_end(tmp_path):
    report = Report(TASK, tmp_path, 0)
    assert [number for number in range(1, 21) if report.is_due(number)] == [4, 6, 8, 12, 16, 18, 20]
    for number in (6, 20):
        report.read(step(1.0))
        report.tell(number, STATE, 0)
    report.close()
    assert [line["validation_loss"] for line in lines(tmp_path)] == [0.25, 0.25]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step_000020.png"]


def test_too_many_skipped_steps_in_a_row_are_an_error(tmp_path):
    report = Report(TASK, tmp_path, 0)
    report.read(step(float("nan"), bad=1))
    report.read(step(float("nan"), bad=2))
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        report.read(step(float("nan"), bad=3))
