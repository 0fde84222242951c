"""Laws of reading a run's weights."""

import logging
import shutil
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from genjax import config
from genjax.errors import InputError
from genjax.interop.trees import write_tree
from genjax.models.byte_encoder import ByteEncoder
from genjax.models.mmdit import MMDiT
from genjax.runs.checkpoints import Checkpoint, Checkpoints, fingerprint
from genjax.runs.directory import SHIPPED, shipped_runs
from genjax.runs.weights import read_weights, ship, weights_metadata, write_part
from genjax.tasks.conditions import Text
from genjax.tasks.denoising import Denoising
from genjax.training.state import initial_state, to_trees
from tests.training.games import Regression

TASK = Denoising(
    model=MMDiT(channels=1, depth=1, num_heads=1, head_dim=8, pos_embed_max_size=8),
    condition=Text(ByteEncoder(max_length=24, width=8, pooled_width=8, num_heads=1)),
)


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda key: initial_state(TASK, key))(jax.random.key(0))


@pytest.mark.slow
def test_the_average_of_the_newest_checkpoint_comes_before_the_file(tmp_path, state):
    average = jax.tree.map(lambda leaf: leaf + 1, state.ema)
    checkpoints = Checkpoints(tmp_path / "checkpoints", Checkpoint())
    checkpoints.save(4, to_trees(state._replace(ema=average)), {})
    checkpoints.wait()
    checkpoints.close()
    write_tree(tmp_path / "model.safetensors", jax.device_get(state.ema), {"step": "1"})
    weights, step = read_weights(tmp_path, TASK)
    assert step == 4
    chex.assert_trees_all_equal(weights.trained, average)


def test_without_checkpoints_the_file_is_read(tmp_path, state):
    write_tree(tmp_path / "model.safetensors", jax.device_get(state.ema), {"step": "9"})
    weights, step = read_weights(tmp_path, TASK)
    assert step == 9
    chex.assert_trees_all_equal(weights.trained, state.ema)


def test_weights_of_another_network_are_refused(tmp_path, state):
    write_tree(tmp_path / "model.safetensors", jax.device_get(state.ema))
    with pytest.raises(InputError, match="do not fit the network"):
        read_weights(tmp_path, replace(TASK, model=TASK.model.clone(head_dim=16)))


def test_a_run_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no checkpoint and no model.safetensors"):
        read_weights(tmp_path, TASK)


def unreadable_checkpoint(run):
    """As a release wrote it that arranged its trees otherwise."""
    (run / "checkpoints" / "4" / "state").mkdir(parents=True)
    (run / "checkpoints" / "4" / "_CHECKPOINT_METADATA").write_text("{}")


def test_where_no_checkpoint_can_be_read_the_file_is(tmp_path, state, caplog):
    write_tree(tmp_path / "model.safetensors", jax.device_get(state.ema), {"step": "9"})
    unreadable_checkpoint(tmp_path)
    logging.getLogger("genjax").propagate = True
    weights, step = read_weights(tmp_path, TASK)
    assert step == 9
    chex.assert_trees_all_equal(weights.trained, state.ema)
    assert f"the weights are those of {tmp_path / 'model.safetensors'} instead" in caplog.text


def test_where_neither_can_be_read_one_sentence_says_so(tmp_path):
    unreadable_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"none of the checkpoints in .* can be read: .* and no model.safetensors yet"):
        read_weights(tmp_path, TASK)


@pytest.mark.parametrize("checkpointed", [True, False], ids=["checkpoint", "file"])
def test_parts_that_hold_still_are_those_the_run_was_trained_with(tmp_path, checkpointed):
    task = Regression()
    state = initial_state(task, jax.random.key(0))
    if checkpointed:
        checkpoints = Checkpoints(tmp_path / "checkpoints", Checkpoint())
        checkpoints.save(4, to_trees(state), {"fixed": fingerprint(state.parts.fixed)})
        checkpoints.wait()
        checkpoints.close()
    else:
        write_part(tmp_path, "trained", state.ema, weights_metadata(4, state.parts.fixed))
        write_part(tmp_path, "variables", state.parts.variables)
    with pytest.raises(InputError, match="fixed.safetensors is missing"):
        read_weights(tmp_path, task)
    write_part(tmp_path, "fixed", state.parts.fixed)
    parts, step = read_weights(tmp_path, task)
    assert step == 4
    chex.assert_trees_all_equal(parts, state.averaged)
    write_part(tmp_path, "fixed", {"offset": np.float32(0.3)})
    with pytest.raises(InputError, match="its numbers have changed"):
        read_weights(tmp_path, task)


def test_parts_that_hold_still_fit_the_task(tmp_path):
    """Of a file that records no fingerprint too."""
    state = initial_state(Regression(), jax.random.key(0))
    write_part(tmp_path, "trained", state.ema)
    write_part(tmp_path, "variables", state.parts.variables)
    write_part(tmp_path, "fixed", {"offset": np.zeros(2, np.float32)})
    with pytest.raises(InputError, match=r"fixed.safetensors do not fit .*: offset has the shape \(2,\) and not \(\)"):
        read_weights(tmp_path, Regression())


def test_without_an_average_the_parameters_are_read(tmp_path, state):
    task = replace(TASK, train=replace(TASK.train, ema_decay=None))
    checkpoints = Checkpoints(tmp_path / "checkpoints", Checkpoint())
    checkpoints.save(4, to_trees(state._replace(ema=None)), {})
    checkpoints.wait()
    checkpoints.close()
    weights, _ = read_weights(tmp_path, task)
    chex.assert_trees_all_equal(weights.trained, state.parts.trained)


def test_only_the_average_is_read_of_a_checkpoint(tmp_path, state):
    """The optimiser's moments are three times as much; they may be gone."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", Checkpoint())
    checkpoints.save(4, to_trees(state), {})
    checkpoints.wait()
    checkpoints.close()
    for name in ("trained", "optimizer", "counters"):
        shutil.rmtree(tmp_path / "checkpoints" / "4" / name)
    assert read_weights(tmp_path, TASK)[1] == 4


@pytest.fixture
def run(tmp_path, state):
    config.save(TASK, tmp_path / "run" / "config.json")
    write_tree(tmp_path / "run" / "model.safetensors", jax.device_get(state.ema), {"step": "9"})
    return tmp_path / "run"


def test_a_shipped_run_has_half_the_size_and_reads_as_the_run_to_eleven_bits(tmp_path, run):
    file = ship(run, tmp_path / "shipped")
    task = config.read(tmp_path / "shipped" / "config.json")
    (here, step), (there, _) = read_weights(tmp_path / "shipped", task), read_weights(run, TASK)
    assert (task, step) == (TASK, 9)
    assert file.stat().st_size < 0.6 * (run / "model.safetensors").stat().st_size
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-25)  # half a step of float16, or of its subnormals


def test_a_shipped_run_guards_the_parts_that_hold_still_too(tmp_path):
    task = Regression()
    state = initial_state(task, jax.random.key(0))
    write_part(tmp_path, "trained", state.ema, weights_metadata(4, state.parts.fixed))
    for name in ("variables", "fixed"):
        write_part(tmp_path, name, getattr(state.parts, name))
    config.save(task, tmp_path / "config.json", allow=config.allowed("tests"))
    ship(tmp_path, tmp_path / "shipped", allow="tests")
    assert read_weights(tmp_path / "shipped", task)[1] == 4
    write_part(tmp_path / "shipped", "fixed", {"offset": np.float32(0.3)})
    with pytest.raises(InputError, match="its numbers have changed"):
        read_weights(tmp_path / "shipped", task)


def test_a_run_of_a_system_outside_of_genjax_is_shipped_where_its_package_is_named(tmp_path):
    task, run = Regression(), tmp_path / "run"
    config.save(task, run / "config.json", allow=config.allowed("tests"))
    parts = initial_state(task, jax.random.key(0)).parts
    for name in ("trained", "fixed", "variables"):
        write_part(run, name, getattr(parts, name))
    with pytest.raises(InputError, match=r"only types of genjax are accepted; .*--allow tests"):
        ship(run, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()
    ship(run, tmp_path / "shipped", allow=("tests",))
    assert config.read(tmp_path / "shipped" / "config.json", allow=config.allowed("tests")) == task


def test_variables_of_another_system_are_refused(tmp_path):
    task = Regression()
    state = initial_state(task, jax.random.key(0))
    write_part(tmp_path, "trained", state.ema)
    write_part(tmp_path, "fixed", state.parts.fixed)
    write_part(tmp_path, "variables", {"other": np.zeros(2, np.float32)})
    with pytest.raises(InputError, match=r"variables.safetensors do not fit .* missing"):
        read_weights(tmp_path, task)


def test_weights_that_overflow_in_half_precision_are_not_shipped(tmp_path, run, state):
    large = jax.tree.map(lambda leaf: leaf + 1e5, jax.device_get(state.ema))
    write_tree(run / "model.safetensors", large, {"step": "9"})
    with pytest.raises(InputError, match="do not fit into float16"):
        ship(run, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


@pytest.mark.parametrize("run", shipped_runs(), ids=lambda run: run.name)
def test_the_shipped_weights_fit_their_config_and_are_small(run):
    weights, step = read_weights(run, config.read(run / "config.json"))
    assert step > 0
    limit = 6_000_000 if run.name == "emoji" else 2_000_000
    assert sum(path.stat().st_size for path in run.glob("*.safetensors")) <= limit
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
    assert run.parent == SHIPPED
