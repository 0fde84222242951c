"""Laws of the training loop, on a small system: exact resume, what it writes, and what stops it."""

import json
import os
import shutil
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest

from genjax import config
from genjax.data import Npz, TwentyFiveGaussians
from genjax.errors import InputError
from genjax.interop.trees import read_tree, write_tree
from genjax.models.critics import MLPCritic
from genjax.models.generators import MLPGenerator
from genjax.parallel.mesh import Mesh
from genjax.runs.checkpoints import Checkpoint, Checkpoints
from genjax.runs.source import Source
from genjax.runs.weights import read_weights
from genjax.tasks.gan import GAN
from genjax.training.beginnings import starting_points
from genjax.training.loop import fit
from genjax.training.optimizer import AdamW
from genjax.training.task import Train
from tests.training.games import Regression, SecondStage

TRAIN = Train(
    steps=8, batch_size=8, log_every=4, validate_every=8, sample_every=8, seed=3, data_threads=0, max_skipped=3
)
# Its eps is large: Adam would make whole steps of rounding errors where gradients are nearly zero.
ADAMW = AdamW(learning_rate=1e-3, warmup_steps=2, eps=1e-3)
TASK = GAN(
    generator=MLPGenerator(width=8, depth=1),
    critic=MLPCritic(width=8, depth=1),
    latent=3,
    data=TwentyFiveGaussians(points=64, test_points=64),
    optimizer=ADAMW,
    critic_optimizer=ADAMW,
    train=TRAIN,
    checkpoint=Checkpoint(every=3),
    mesh=Mesh(data=1),
)


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory):
    """(step, the losses of both players) of each line."""
    return [(line["step"], line["loss/critic"], line["loss/generator"]) for line in lines(directory)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "straight"
    return directory, jax.device_get(fit(TASK, directory))


def stop_after(monkeypatch, step):
    """Ask to stop, as a signal does, when batch `step` is read."""
    from genjax.data.loader import Loader

    read, seen = Loader.__next__, []

    def counting(self):
        seen.append(1)
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self)

    monkeypatch.setattr(Loader, "__next__", counting)


def test_a_run_directory_documents_itself(straight):
    directory, state = straight
    names = {path.name for path in directory.iterdir()}
    assert names == {"config.json", "checkpoints", "metrics.jsonl", "tensorboard", "samples", "log.txt",
                     "model.safetensors"}  # fmt: skip
    assert [line["step"] for line in lines(directory)] == [4, 8]
    assert "validation_score_of_held_out" in lines(directory)[-1]
    assert [path.name for path in (directory / "samples").iterdir()] == ["step_000008.png"]
    tree, metadata = read_tree(directory / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, tree, state.ema)
    assert metadata == {"step": "8"}
    assert (int(state.step), dict(state.updates)) == (8, {"critic": 8, "generator": 8})


class Ended(BaseException):
    """The end of a process, as it is played here."""


@pytest.mark.parametrize("meanwhile", ["while a batch is read", "while a checkpoint is written"])
def test_what_fails_between_steps_or_in_the_background_ends_all_processes(tmp_path, monkeypatch, meanwhile):
    """And does so before this one closes its checkpoints, where it would wait for the others."""
    events, save, close = [], Checkpoints.save, Checkpoints.close

    def full_disk(*arguments, **options):
        if "failed" not in events:
            events.append("failed")
            monkeypatch.setattr(jax, "process_count", lambda: 2)  # From here on it plays one of two.
            raise OSError("no space left on device")

    def ended(code):
        monkeypatch.setattr(jax, "process_count", lambda: 1)
        events.append("ended")
        raise Ended(code)

    def saved(self, *arguments):
        save(self, *arguments)
        if meanwhile == "while a checkpoint is written":
            monkeypatch.setattr("orbax.checkpoint.CheckpointManager.wait_until_finished", full_disk)

    monkeypatch.setattr("genjax.parallel.host.os._exit", ended)
    monkeypatch.setattr(Checkpoints, "save", saved)
    monkeypatch.setattr(Checkpoints, "close", lambda self: events.append("closed") or close(self))
    if meanwhile == "while a batch is read":
        monkeypatch.setattr("genjax.data.loader.Loader.__next__", full_disk)
    with pytest.raises(Ended):
        fit(Regression(train=replace(TRAIN, steps=1), mesh=Mesh(data=1)), tmp_path / "run")
    assert events == ["failed", "ended", "closed"]


@pytest.mark.parametrize("devices", [1, 4])
def test_a_run_that_was_stopped_goes_on_exactly(straight, tmp_path, monkeypatch, devices):
    """Stopped at step 5, between checkpoints and lines; also on four devices, where sums differ in their last bits.

    The line at step 8 is of steps 5 to 8, as in the run that was not stopped.
    """
    directory, whole = straight
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        stopped = fit(TASK, tmp_path / "run")
    assert int(stopped.step) == 5
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = jax.device_get(fit(replace(TASK, mesh=Mesh(data=devices)), tmp_path / "run"))
    if devices == 1:
        jax.tree.map(np.testing.assert_array_equal, resumed, whole)
        assert losses(directory) == losses(tmp_path / "run")
    else:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), resumed, whole)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_run_that_was_killed_tells_what_one_that_was_not_tells(straight, tmp_path, monkeypatch):
    """Killed after step 7, resumed at 6, where steps 5 and 6 were not yet told."""
    from genjax.training.report import Report

    read, seen = Report.read, []

    def dying(self, told):
        seen.append(1)
        if len(seen) == 7:
            raise Killed
        read(self, told)

    with monkeypatch.context() as patch:
        patch.setattr(Report, "read", dying)
        with pytest.raises(Killed):
            fit(TASK, tmp_path / "run")
    resumed = jax.device_get(fit(TASK, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, resumed, straight[1])
    assert losses(straight[0]) == losses(tmp_path / "run")


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_steps_where_the_schedule_agrees(straight, tmp_path):
    """The learning rate is constant after its warm-up: 5 and then 8 steps are 8 steps."""
    fit(replace(TASK, train=replace(TRAIN, steps=5)), tmp_path / "run")
    state = jax.device_get(fit(TASK, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, state, straight[1])


@pytest.mark.slow
def test_what_holds_still_lies_beside_the_run_and_is_guarded(tmp_path):
    """No checkpoint holds it; a run whose frozen parts were changed or lost does not go on with others in silence."""
    task = Regression(train=replace(TRAIN, steps=2), checkpoint=Checkpoint(every=2))
    fit(task, tmp_path / "run")
    file = tmp_path / "run" / "fixed.safetensors"
    assert read_tree(file)[0]["offset"] == np.float32(0.2)
    longer = replace(task, train=replace(TRAIN, steps=4))
    state = fit(longer, tmp_path / "run")
    assert (int(state.step), float(state.parts.fixed["offset"])) == (4, np.float32(0.2))
    write_tree(file, {"offset": np.float32(0.3)})
    with pytest.raises(InputError, match="its numbers have changed"):
        fit(longer, tmp_path / "run")
    file.unlink()
    with pytest.raises(InputError, match="is missing"):
        fit(longer, tmp_path / "run")


@pytest.fixture
def stages(tmp_path):
    """(the first stage's run and its last state, a second stage on top of it)."""
    first = tmp_path / "first"
    train = replace(TRAIN, steps=4, ema_decay=0.5)
    state = fit(Regression(train=train, checkpoint=Checkpoint(every=4)), first)
    second = SecondStage(first=Source(str(first), allow=("tests",)), train=train, checkpoint=Checkpoint(every=2))
    return first, jax.device_get(state), second


@pytest.mark.slow
def test_a_second_stage_holds_the_first_and_needs_its_run_no_more(stages, tmp_path, monkeypatch):
    """Its directory alone is trained on, sampled and guarded, when the run of the first stage is gone."""
    first, before, task = stages
    whole = jax.device_get(fit(task, tmp_path / "whole"))
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        fit(task, run)
    shutil.rmtree(first)
    resumed = jax.device_get(fit(task, run))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    jax.tree.map(np.testing.assert_array_equal, resumed.parts.fixed["first"], before.ema)

    def read():
        return read_weights(run, config.read(run / "config.json", allow=("genjax.", "tests.")))[0]

    jax.tree.map(np.testing.assert_array_equal, read(), whole.averaged)
    shutil.rmtree(run / "checkpoints")
    jax.tree.map(np.testing.assert_array_equal, read(), whole.averaged)
    held = run / "fixed.safetensors"
    content = bytearray(held.read_bytes())
    content[-1] ^= 1
    held.write_bytes(bytes(content))
    with pytest.raises(InputError, match="its numbers have changed"):
        read()
    with pytest.raises(InputError, match="its numbers have changed"):
        shutil.copy(held, tmp_path / "whole" / "fixed.safetensors")
        fit(replace(task, train=replace(task.train, steps=5)), tmp_path / "whole")


def test_a_first_stage_of_another_system_is_refused(stages, tmp_path):
    first, _, task = stages
    write_tree(tmp_path / "other.safetensors", {"w": np.ones(4, np.float32), "b": np.float32(0)})
    wrong = replace(task, first=Source(str(tmp_path / "other.safetensors")))
    with pytest.raises(InputError, match=r"not those that this run needs: w has the shape \(4,\) and not \(3,\)"):
        fit(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_may_begin_with_the_weights_of_another(straight, tmp_path):
    directory, whole = straight
    begun = replace(TASK, train=replace(TRAIN, steps=1, start=Source(str(directory))))
    immobile = AdamW(learning_rate=1e-30, warmup_steps=0)
    still = replace(begun, optimizer=immobile, critic_optimizer=immobile)
    state = fit(still, tmp_path / "run")
    for begun_with in (state.parts.trained, state.ema):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(begun_with), whole.ema)
    # A run that was killed while it wrote its first checkpoint has none, and begins again with those weights.
    (tmp_path / "killed" / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    assert starting_points(begun, tmp_path / "killed").trained is not None
    other = replace(begun, critic=MLPCritic(width=16, depth=1))
    with pytest.raises(InputError, match="are not those that this run needs: .* has the shape"):
        fit(other, tmp_path / "other")


def test_a_run_that_is_past_the_last_step_is_refused_and_left_alone(straight):
    directory, _ = straight
    before = (directory / "config.json").read_text()
    with pytest.raises(InputError, match="has been trained for 8 steps, more than train.steps = 5"):
        fit(replace(TASK, train=replace(TRAIN, steps=5)), directory)
    assert (directory / "config.json").read_text() == before


def test_a_finished_run_stays_as_it_is(straight):
    directory, state = straight
    before = (directory / "metrics.jsonl").read_text()
    again = jax.device_get(fit(TASK, directory))
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert (directory / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_only_the_steps_after_the_one_before(straight, tmp_path, monkeypatch, capfd):
    _, whole = straight
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        fit(TASK, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["6", "7"]
    for file in (tmp_path / "run" / "checkpoints" / "7").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:50])
    resumed = jax.device_get(fit(TASK, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    told = (tmp_path / "run" / "log.txt").read_text()
    assert "checkpoint 7" in told
    assert "resuming" in told
    assert "at step 6 of 8" in told


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path, monkeypatch):
    """The checkpoint that was written before stays; each skip is told."""
    from genjax.data.loader import Loader

    read, seen = Loader.__next__, []

    def poisoned(self):
        batch = read(self)
        seen.append(1)
        return batch | {"x": batch["x"] * (np.nan if len(seen) > 4 else 1)}

    monkeypatch.setattr(Loader, "__next__", poisoned)
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        fit(TASK, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
    assert "not finite (2 in a row)" in " ".join((tmp_path / "run" / "log.txt").read_text().split())


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (replace(TASK, train=replace(TRAIN, batch_size=9, accumulate=2)), "does not split evenly over 1 devices times"),
        (replace(TASK, latent=0), "latent is the number of coordinates"),
        (replace(TASK, mesh=Mesh(data=99)), "^mesh.data is 99"),
        (replace(Regression(), data=Npz("nowhere.npz")), "^data.path: nowhere.npz does not exist"),
        (replace(TASK, train=replace(TRAIN, start=Source("nowhere"))), "nowhere is not a run directory"),
    ],
)
def test_what_cannot_be_trained_leaves_no_directory(tmp_path, task, sentence):
    with pytest.raises(InputError, match=sentence):
        fit(task, tmp_path / "run")
    assert not (tmp_path / "run").exists()
