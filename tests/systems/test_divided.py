"""Laws of divided meshes: the same run on one device and on four, whole or divided, is the same run.

Three systems are trained for 20 steps by the loop, with its lines, numbers on fixed data and previews, on each mesh.
Adam divides a gradient by its own size, and so makes of a gradient that is rounding, as of a key's bias in attention, a
step of the whole learning rate: eps is 1e-3 here, which lets rounding stay rounding. All else is the config's own.
"""

import functools
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from genjax import config
from genjax.parallel.mesh import Mesh
from genjax.parallel.rules import bytes_per_device
from genjax.runs.checkpoints import Checkpoints
from genjax.runs.weights import read_weights
from genjax.training.loop import fit
from genjax.training.state import abstract_state, to_trees
from tests.systems.conftest import SYSTEMS, lines, share_by_hand

STEPS = 20
CHANGES = {
    "sd3-nano": {"optimizer.eps": 1e-3, "model.depth": 1},
    "gan-toy": {"optimizer.eps": 1e-3, "critic_optimizer.eps": 1e-3},
    # Muon makes every direction of a gradient as large as the others, and so steps of rounding too.
    "lm-nano": {
        "optimizer": "AdamW",
        "optimizer.learning_rate": 2e-3,
        "optimizer.warmup_steps": 5,
        "optimizer.eps": 1e-3,
    },
}
ONE = "one device"
MESHES = {
    ONE: Mesh(data=1),
    "data 4": Mesh(data=4),
    "data 4, ring": Mesh(data=4, all_reduce="ring"),
    "fsdp 4": Mesh(data=1, fsdp=4),
    "fsdp 2 x tensor 2": Mesh(data=1, fsdp=2, tensor=2),
}
DIVIDED = {name: mesh for name, mesh in MESHES.items() if mesh.sharded}
pytestmark = pytest.mark.slow


def each_mesh(names):
    return pytest.mark.parametrize("mesh", list(names))


@pytest.fixture(scope="module", params=[system.param() for system in SYSTEMS if system.name in CHANGES])
def task(request):
    """Twenty steps, with a line at the tenth, and a checkpoint, numbers and a preview at the last."""
    every = {"train.log_every": 10, "train.validate_every": 20, "train.sample_every": 20, "checkpoint.every": 20}
    return config.override(request.param.task(), {"train.steps": STEPS} | every | CHANGES[request.param.name])


@pytest.fixture(scope="module")
def runs(task, tmp_path_factory):
    """(directory, state) of the run on a mesh, by the mesh's name; each is trained once."""
    done = {}

    def run(name):
        if name not in done:
            directory = tmp_path_factory.mktemp("runs") / "run"
            done[name] = directory, fit(replace(task, mesh=MESHES[name]), directory)
        return done[name]

    return run


@pytest.fixture(scope="module")
def abstract(task):
    """The state on a mesh by the mesh's name: shapes and where they lie. The task's `init` is traced once for each."""
    return functools.cache(lambda name: abstract_state(replace(task, mesh=MESHES[name]), MESHES[name].build()))


def told(directory):
    return [{name: value for name, value in line.items() if value is not None} for line in lines(directory)]


def learnt(state):
    return jax.device_get((state.parts.trained, state.parts.variables, state.ema))


@each_mesh(name for name in MESHES if name != ONE)
def test_the_mesh_changes_no_parameter_and_no_line(runs, mesh):
    (there, alone), (here, state) = runs(ONE), runs(mesh)
    chex.assert_trees_all_close(learnt(state), learnt(alone), rtol=1e-5, atol=1e-5)
    assert [line["step"] for line in told(here)] == [10, 20]
    chex.assert_trees_all_close(told(here), told(there), rtol=1e-4, atol=1e-5)


@each_mesh(DIVIDED)
def test_a_device_holds_its_share_and_no_more(task, runs, abstract, mesh):
    """Of what is large, one part of as many as there are devices that share it; of the moments and averages as well."""
    mesh_here = MESHES[mesh].build()
    state = abstract(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    theory = share_by_hand(replace(task, mesh=MESHES[mesh]))
    assert bytes_per_device(shardings.parts.trained, state.parts.trained) == theory
    # The parameters, their average, and Adam's two moments; then some counters.
    assert 0 <= bytes_per_device(shardings, state) - 4 * theory < 100
    for device in mesh_here.devices.flat:
        shards = (shard for leaf in jax.tree.leaves(runs(mesh)[1]) for shard in leaf.addressable_shards)
        held = sum(shard.data.nbytes for shard in shards if shard.device == device)
        assert held == bytes_per_device(shardings, state)


@each_mesh(name for name in MESHES if name != "data 4, ring")
def test_a_checkpoint_of_one_mesh_is_read_on_every_other_bit_for_bit(runs, abstract, mesh):
    directory, state = runs(mesh)
    saved = jax.device_get(to_trees(state))
    checkpoints = Checkpoints(directory / "checkpoints")
    for other in MESHES:
        template = to_trees(abstract(other))
        restored = checkpoints.restore(template)
        assert restored.step == STEPS
        chex.assert_trees_all_equal(jax.device_get(restored.trees), saved)
        for leaf, wanted in zip(jax.tree.leaves(restored.trees), jax.tree.leaves(template), strict=True):
            assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    checkpoints.close()


@each_mesh(DIVIDED)
def test_the_weights_that_samples_are_drawn_with_are_written_whole(task, runs, mesh):
    directory, state = runs(mesh)
    (directory / "checkpoints").rename(directory / "aside")
    try:
        parts, step = read_weights(directory, task)
    finally:
        (directory / "aside").rename(directory / "checkpoints")
    assert step == STEPS
    chex.assert_trees_all_equal(jax.device_get(parts.trained), jax.device_get(state.ema))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parts.trained))
