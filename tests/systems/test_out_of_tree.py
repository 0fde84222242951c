"""A system that lives outside of genjax: a package and a config file in a folder of their own, at every door.

`mine` draws a line through points and shows it. It leaves a mark where it is imported, as importing runs its code: a
run that somebody has downloaded never does that unless --allow says so.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import sample
from genjax import evaluate
from genjax.errors import InputError

ROOT = Path(__file__).parents[2]
STEPS = 200

FILES = {
    "mine/__init__.py": '''
        """Not a part of genjax."""

        from pathlib import Path

        Path(__file__).with_name("imported").touch()
    ''',
    "mine/network.py": '''
        """A line."""

        from flax import linen as nn


        class Line(nn.Module):
            """y = w x + b."""

            bias: bool = True

            @nn.compact
            def __call__(self, x):
                return nn.Dense(1, use_bias=self.bias)(x)
    ''',
    "mine/regression.py": '''
        """Points near y = 2 x - 1, and a line through them."""

        import time
        from dataclasses import dataclass, field

        import jax.numpy as jnp
        import numpy as np

        from genjax.data.examples import Examples
        from genjax.errors import InputError
        from genjax.runs.outputs import Images, Numbers
        from genjax.runs.parts import Parts
        from genjax.training.task import Sums, Task
        from mine.network import Line


        @dataclass(frozen=True)
        class Points:
            """Sixty-four of them; read as slowly as from a disk."""

            seconds: float = 0.001

            def source(self, split):
                def read(i):
                    time.sleep(self.seconds)
                    x = np.float32((i % 32 - 16) / 16)
                    return {"x": x, "y": np.float32(2 * x - 1)}

                return Examples(range(64), read)


        @dataclass(frozen=True, kw_only=True)
        class Regression(Task):
            """Least squares."""

            model: Line = field(default_factory=Line)
            data: Points = Points()

            def init(self, key):
                return Parts(self.model.init(key, jnp.zeros((1, 1)))["params"])

            def prepare(self, example, rng):
                return example

            def loss(self, parts, batch, keys, totals):
                y = self.model.apply({"params": parts.trained}, batch["x"][:, None])[:, 0]
                return Sums({"loss": jnp.square(y - batch["y"]).sum() / totals["rows"]})

            def validate(self, parts):
                return {}

            def line(self, parts, x):
                return np.asarray(self.model.apply({"params": parts.trained}, x[:, None])[:, 0])

            def request(self, door):
                return Ask() if door == "evaluate" else Draw()


        @dataclass(frozen=True, kw_only=True)
        class Draw:
            """Draw the line."""

            size: int = 16
            """Width and height of the picture."""

            def check(self, task):
                if self.size < 2:
                    raise InputError(f"--size is at least 2, not {self.size}")

            def __call__(self, task, parts):
                x = np.linspace(-1, 1, self.size, dtype=np.float32)
                near = np.abs(task.line(parts, x)[None] - np.linspace(3, -3, self.size)[:, None]) < 6 / self.size
                yield Images(np.where(near, 1.0, -1.0)[None, ..., None], said="a line")


        @dataclass(frozen=True, kw_only=True)
        class Ask:
            """Slope and height of the line."""

            at: float = 0.0
            """Where its height is taken."""

            def check(self, task):
                pass

            def __call__(self, task, parts):
                low, here = task.line(parts, np.array([self.at - 1, self.at], np.float32))
                yield Numbers({"slope": float(here - low), "height": float(here)})
    ''',
    "config.py": '''
        """A line through points."""

        from genjax.runs.checkpoints import Checkpoint
        from genjax.training.optimizer import SGD
        from genjax.training.task import Train
        from mine.regression import Regression


        def line():
            return Regression(
                optimizer=SGD(learning_rate=0.2, warmup_steps=0, momentum=0.5),
                train=Train(steps=200, batch_size=4, ema_decay=None, data_threads=0, log_every=7, sample_every=100),
                checkpoint=Checkpoint(every=20),
            )


        VARIANTS = {"line": line}
    ''',
}


@pytest.fixture
def elsewhere(tmp_path):
    """The folder with the package and the config."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    return tmp_path


def start(folder, *words):
    """A door, started as people do who stand in the folder of their own project."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    told, refused = process.communicate(timeout=300)
    assert process.returncode == 0, told + refused
    return " ".join(told.split())


def lines(run):
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


@pytest.mark.e2e
def test_it_is_trained_killed_resumed_sampled_and_evaluated(elsewhere):
    train = (ROOT / "train.py", "--config", "config.py", "--workdir", "run")
    run, process = elsewhere / "run", start(elsewhere, *train)
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / "20").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 14 <= lines(run)[-1]["step"] < STEPS
    assert "resuming run at step" in finish(start(elsewhere, *train))
    steps = [line["step"] for line in lines(run)]
    assert steps == sorted({*range(7, STEPS, 7), 100, STEPS})
    assert lines(run)[-1]["loss"] < 1e-3

    # At the other doors a package of a run is named, or not imported.
    for words in ((ROOT / "sample.py",), ("-m", "genjax.evaluate")):
        (elsewhere / "mine" / "imported").unlink()
        process = start(elsewhere, *words, "--workdir", "run")
        told, refused = process.communicate(timeout=300)
        assert process.returncode == 2, told + refused
        (sentence,) = refused.splitlines()
        assert sentence.startswith("error: ")
        assert "of type 'mine.regression.Points': only types of genjax are accepted" in sentence
        assert "--allow mine" in sentence
        assert not (elsewhere / "mine" / "imported").exists()
        told = finish(start(elsewhere, *words, "--workdir", "run", "--allow", "mine"))
        assert f"at step {STEPS} (as named)" in told
    assert (elsewhere / "out" / "grid.png").is_file()
    figures = json.loads((run / "evaluation.json").read_text())
    np.testing.assert_allclose([figures["slope"], figures["height"]], [2, -1], atol=1e-2)


@pytest.mark.parametrize("kind", ["mine.regression.Regression", "mine.network.Line", "os.system", "subprocess.Popen"])
def test_a_run_that_was_downloaded_runs_no_code_of_its_own(elsewhere, monkeypatch, kind):
    """Whether the foreign type is the task itself or lies deep in it, at either door; though Python would find it."""
    from genjax import config

    monkeypatch.chdir(elsewhere)
    monkeypatch.syspath_prepend(elsewhere)
    shipped = json.loads((ROOT / "pretrained" / "sd3-nano" / "config.json").read_text())
    for data in ({"type": kind}, shipped | {"model": {"type": kind}}):
        run = elsewhere / "downloaded"
        run.mkdir(exist_ok=True)
        (run / "config.json").write_text(json.dumps(data))
        for door in (sample, evaluate):
            with pytest.raises(InputError, match=f"cannot be of type '{kind}': only types of genjax are accepted"):
                door.main(["--workdir", str(run)])
        with pytest.raises(InputError, match="only types of genjax are accepted"):
            config.read(run / "config.json")
    assert not (elsewhere / "mine" / "imported").exists()
    assert not any(name.partition(".")[0] == "mine" for name in sys.modules)


def test_a_config_file_that_begins_from_such_a_run_has_to_allow_it(elsewhere, monkeypatch):
    """--train.start.path reads a run as the doors do."""
    import train

    monkeypatch.chdir(elsewhere)
    run = elsewhere / "downloaded"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"type": "mine.regression.Regression"}))
    words = ["--config", str(ROOT / "configs/gan.py"), "--train.start.path", str(run), "--workdir", "begun"]
    with pytest.raises(InputError, match="--allow mine"):
        train.main(words)
    assert not (elsewhere / "mine" / "imported").exists()
