"""Laws that every system keeps, whatever it is: a new config file inherits all of them.

Each variant in a config file's SMOKE is trained for four steps, killed and resumed, sampled, evaluated, and built on a
mesh that divides its state.
"""

import json
import shutil
from dataclasses import replace

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

import sample
from genjax import config, evaluate
from genjax.config.tree import leaves
from genjax.data.loader import Loader
from genjax.parallel.mesh import Mesh, shard_batch
from genjax.parallel.rules import bytes_per_device
from genjax.runs.weights import read_weights
from genjax.tasks.language_model import LanguageModel
from genjax.training.loop import fit
from genjax.training.state import abstract_state
from genjax.training.update import make_update
from tests.systems.conftest import ROOT, STEPS, SYSTEMS, lines, share_by_hand
from train import Options


def test_every_config_file_offers_a_small_size():
    assert {system.file for system in SYSTEMS} == set((ROOT / "configs").glob("*.py"))


def test_its_help_names_every_field(system, capsys):
    with pytest.raises(SystemExit):
        config.parse_with_config(["--config", system.spec, "--help"], Options())
    told = capsys.readouterr().out
    for name in leaves(config.load(system.spec)[0]):
        assert f"--{name}" in told


def test_its_config_is_rebuilt_from_the_run_directory_alone(system, trained):
    assert config.read(trained[0] / "config.json") == system.task("--mesh.data", "1")


def test_it_trains_and_tells(system, trained):
    directory, state = trained
    assert [line["step"] for line in lines(directory)] == [3, 4]
    for line in lines(directory):
        assert all(np.isfinite(value) for value in line.values() if value is not None)
    assert int(state.step) == STEPS
    assert {path.name for path in directory.iterdir()} >= {"config.json", "checkpoints", "log.txt", "model.safetensors"}
    assert any((directory / "samples").iterdir())


class Killed(Exception):
    pass


def test_killed_and_resumed_it_is_the_run_that_was_not(system, trained, tmp_path, monkeypatch):
    """Killed while step 4 is read, after the checkpoint of step 2, whose two steps were not yet told.

    Every bit of the state is that of the whole run, and every line.
    """
    from genjax.training.report import Report

    read, seen = Report.read, []

    def dying(self, told):
        seen.append(1)
        if len(seen) == STEPS:
            raise Killed
        read(self, told)

    task = system.task("--mesh.data", "1")
    with monkeypatch.context() as patch:
        patch.setattr(Report, "read", dying)
        with pytest.raises(Killed):
            fit(task, tmp_path / "run")
    resumed = fit(task, tmp_path / "run")
    chex.assert_trees_all_equal(jax.device_get(resumed), jax.device_get(trained[1]))
    assert lines(tmp_path / "run") == lines(trained[0])


def test_finished_and_trained_again_it_stays_as_it_is(system, trained):
    """Every byte of every file, but of the log and TensorBoard's."""
    directory, state = trained

    def files():
        there = (path for path in directory.rglob("*") if path.is_file() and path.parent.name != "tensorboard")
        return {path: path.read_bytes() for path in there if path.name != "log.txt"}

    before = files()
    again = fit(system.task("--mesh.data", "1"), directory)
    chex.assert_trees_all_equal(jax.device_get(again), jax.device_get(state))
    assert files() == before


def test_it_is_sampled(system, trained, tmp_path, capsys):
    out = tmp_path / "out"
    sample.main(["--workdir", str(trained[0]), "--out", str(out), *system.door("sample")])
    told = " ".join(capsys.readouterr().out.split())
    assert f"at step {STEPS} (as named)" in told
    assert any(out.iterdir())


def test_it_is_evaluated(system, trained, capsys):
    directory = trained[0]
    evaluate.main(["--workdir", str(directory), *system.door("evaluate")])
    figures = json.loads((directory / "evaluation.json").read_text())
    assert figures["step"] == STEPS
    assert all(np.isfinite(value) for value in figures.values() if not isinstance(value, str))
    assert json.loads((directory / "evaluations.jsonl").read_text().splitlines()[-1]) == figures


def test_its_weights_are_the_same_from_checkpoints_and_from_files(system, trained, tmp_path):
    directory, _ = trained
    task = config.read(directory / "config.json")
    shutil.copytree(directory, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    chex.assert_trees_all_equal(read_weights(directory, task), read_weights(tmp_path / "run", task))


def test_what_it_is_asked_wrongly_is_refused(system, trained):
    from genjax.errors import InputError

    for door in (sample, evaluate):
        with pytest.raises(InputError, match="--no_such_option is not an option"):
            door.main(["--workdir", str(trained[0]), "--no_such_option", "1"])


class Reached(Exception):
    """Carries the mesh that a network finds itself on."""


def test_what_people_look_at_is_computed_by_rows_where_its_state_is_divided(system):
    """Each device computes its own rows of numbers on fixed data and of previews, and not all of them (`by_rows`)."""
    task = replace(system.task("--train.seed", "17"), mesh=Mesh(data=1, fsdp=4))  # a seed of its own: nothing is cached
    mesh = task.mesh.build()
    abstract = abstract_state(task, mesh).averaged
    parts = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), abstract)

    def told(call, arguments, options, context):
        if context.method_name == "__call__":
            raise Reached(dict(jax.sharding.get_abstract_mesh().shape))
        return call(*arguments, **options)

    looks = [task.validate]
    if not isinstance(task, LanguageModel):  # A text is one row.
        looks.append(lambda parts: list(task.request("preview")(task, parts)))
    for look in looks:
        with nn.intercept_methods(told), pytest.raises(Reached) as reached:
            look(parts)
        assert reached.value.args == (dict(mesh.shape),)


@pytest.mark.slow
def test_its_state_is_divided_over_four_devices_and_steps(system, trained):
    """One more step, under FSDP: what is large lies in four pieces, moments and averages too, and losses are finite."""
    task = replace(system.task(), mesh=Mesh(data=1, fsdp=4))
    mesh = task.mesh.build()
    abstract = abstract_state(task, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    share = share_by_hand(task)
    assert bytes_per_device(shardings.parts.trained, abstract.parts.trained) == share
    if task.train.ema_decay is not None:
        assert bytes_per_device(shardings.ema, abstract.ema) == share
    else:
        assert abstract.ema is None
    # An optimiser's moments are one or two copies of each parameter, and lie as it does; beside them are counters.
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (abstract.optimizer, abstract.parts.trained)]
    held = bytes_per_device(shardings.optimizer, abstract.optimizer)
    assert held == pytest.approx(sizes[0] / sizes[1] * share, rel=0.1, abs=100)
    state = jax.device_put(jax.device_get(trained[1]), shardings)
    rows = Loader(
        task.data.source("train"), batch_size=task.train.batch_size, seed=0, transform=task.prepare, threads=0
    )
    state, told = make_update(task, mesh, shardings=shardings)(state, shard_batch(next(rows), mesh))
    assert int(told.skipped_in_a_row) == 0
    assert all(np.isfinite(total) for total, _ in jax.device_get(told.means).values())
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
