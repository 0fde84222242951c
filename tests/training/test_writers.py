"""Laws of the metric files."""

import io
import json

import numpy as np
from rich.console import Console

from genjax.training.writers import MetricWriter, log_to


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_one_line(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": np.float32(0.5)})
    writer.write(2, {"loss": 0.25, "rate": 3})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "rate": 3.0}]
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_forgets_what_it_will_do_again(tmp_path):
    """Lines after the restored step, and a line cut off by the interruption, are written anew."""
    writer = MetricWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    writer = MetricWriter(tmp_path, resume_step=2)
    writer.write(3, {"loss": 30})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 30.0}]


def test_a_text_of_many_lines_is_one_line_of_the_log_and_whole_in_tensorboard(tmp_path):
    text = "def f():\n\treturn 'ü'\r\n"
    writer = MetricWriter(tmp_path)
    told = []
    writer._events.add_text = lambda *event: told.append(event)
    logger = log_to(tmp_path, Console(file=io.StringIO()))
    writer.text(3, "samples/0000", text)
    writer.close()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    (line,) = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert line.endswith(f"INFO samples/0000 at step 3: {text!r}") and "ü" in line
    assert told == [("samples/0000", "<pre>def f():\n\treturn &#x27;ü&#x27;\r\n</pre>", 3)]


def test_what_is_not_finite_is_null_so_that_each_line_is_json(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": float("nan"), "norm": float("inf")})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": None, "norm": None}]
