"""Laws of how a run begins; runs that go on, and second stages, are in test_loop.py."""

from dataclasses import replace

import jax
import numpy as np

from genjax.parallel.mesh import Mesh
from genjax.runs.checkpoints import Checkpoint, Checkpoints, fingerprint
from genjax.training.beginnings import StartingPoints, first_state, restored_state, same_course
from genjax.training.optimizer import AdamW
from genjax.training.state import to_trees
from genjax.training.task import Train
from tests.training.games import Regression, SecondStage

TRAIN = Train(steps=8)
TASK = Regression(optimizer=AdamW(warmup_steps=2), train=TRAIN)


def test_where_the_schedule_does_not_agree_it_says_how_to_begin_from_there():
    falling = replace(TASK, optimizer=replace(TASK.optimizer, decay="cosine"))
    longer = replace(falling, train=replace(TRAIN, steps=9))
    assert same_course(TASK, replace(TASK, train=replace(TRAIN, steps=9))) is None
    assert "--train.start.path" in same_course(falling, longer)


def test_a_restored_state_lies_as_a_fresh_one(tmp_path):
    """What holds still too, which may be the largest part: on four devices each has its share of it."""
    task = SecondStage()
    large = {"first": {"w": np.ones(3, np.float32), "b": np.float32(0)}, "offset": np.float32(0.25),
             "more": np.ones((64, 32), np.float32)}  # fmt: skip
    mesh = Mesh(data=1, fsdp=4).build()
    fresh = first_state(task, mesh, tmp_path, StartingPoints(None, large))
    checkpoints = Checkpoints(tmp_path / "checkpoints", Checkpoint())
    checkpoints.save(1, to_trees(fresh), {"fixed": fingerprint(fresh.parts.fixed)})
    checkpoints.wait()
    restored, _ = restored_state(task, mesh, tmp_path, checkpoints)
    checkpoints.close()
    assert restored.parts.fixed["more"].sharding.shard_shape((64, 32)) == (16, 32)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(fresh))
    alike = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), restored, fresh)
    assert all(jax.tree.leaves(alike))
