"""The weights that samples are drawn with: the averaged parameters of a run directory."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from genjax.errors import InputError
from genjax.interop.trees import read_tree
from genjax.training.checkpoints import Checkpoints
from genjax.training.update import initial_state


def read_weights(directory: Path, task: Any) -> tuple[PyTree[Array], int]:
    """The averaged parameters of the newest readable checkpoint, else of model.safetensors, and their step.

    Raises InputError when the directory has neither, or when what it has does not fit the task.
    """

    def fresh(key):
        return initial_state(task.init(key), task.optimizer.build(task.train.steps))

    template = jax.eval_shape(fresh, jax.random.key(0))
    if (directory / "checkpoints").is_dir():
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        sharded = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), template)
        checkpoints = Checkpoints(directory / "checkpoints")
        restored = checkpoints.restore(sharded)
        checkpoints.close()
        if restored is not None:
            step, state, _ = restored
            return state.ema, step
    path = directory / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{directory} has no checkpoint and no model.safetensors yet")
    tree, metadata = read_tree(path)
    shapes = jax.tree.map(lambda leaf: leaf.shape, template.ema)
    if jax.tree.map(lambda leaf: leaf.shape, tree) != shapes:
        raise InputError(f"the arrays of {path} do not fit the network of {directory / 'config.json'}")
    return jax.tree.map(jnp.asarray, tree), int(metadata.get("step", 0))
