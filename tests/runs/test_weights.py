"""Laws of reading a run's weights."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from genjax import config
from genjax.errors import InputError
from genjax.interop.trees import write_tree
from genjax.models.byte_encoder import ByteEncoder
from genjax.models.mmdit import MMDiT
from genjax.tasks.text_to_image import TextToImage
from genjax.training.checkpoints import Checkpoint, Checkpoints
from genjax.training.run_directory import SHIPPED
from genjax.training.update import initial_state
from genjax.training.weights import read_weights

TASK = TextToImage(
    model=MMDiT(channels=1, depth=1, num_heads=1, head_dim=8, pos_embed_max_size=8),
    text=ByteEncoder(max_length=24, width=8, pooled_width=8, num_heads=1),
)


@pytest.fixture(scope="module")
def state():
    return initial_state(jax.jit(TASK.init)(jax.random.key(0)), TASK.optimizer.build(TASK.train.steps))


def test_the_average_of_the_newest_checkpoint_comes_before_the_file(tmp_path, state):
    average = jax.tree.map(lambda leaf: leaf + 1, state.ema)
    checkpoints = Checkpoints(tmp_path / "checkpoints", Checkpoint())
    checkpoints.save(4, state._replace(ema=average), {})
    checkpoints.wait()
    checkpoints.close()
    write_tree(tmp_path / "model.safetensors", jax.device_get(state.ema), {"step": "1"})
    weights, step = read_weights(tmp_path, TASK)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, weights, average)


def test_without_checkpoints_the_file_is_read(tmp_path, state):
    write_tree(tmp_path / "model.safetensors", jax.device_get(state.ema), {"step": "9"})
    weights, step = read_weights(tmp_path, TASK)
    assert step == 9
    jax.tree.map(np.testing.assert_array_equal, weights, state.ema)


def test_weights_of_another_network_are_refused(tmp_path, state):
    write_tree(tmp_path / "model.safetensors", jax.device_get(state.ema))
    with pytest.raises(InputError, match="do not fit the network"):
        read_weights(tmp_path, replace(TASK, model=TASK.model.clone(head_dim=16)))


def test_a_run_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no checkpoint and no model.safetensors"):
        read_weights(tmp_path, TASK)


def test_the_shipped_weights_fit_their_config_and_are_small():
    weights, step = read_weights(SHIPPED, config.read(SHIPPED / "config.json"))
    assert step == 3000
    assert (SHIPPED / "model.safetensors").stat().st_size <= 2_000_000
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
