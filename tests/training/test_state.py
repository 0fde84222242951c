"""Laws of the state: checkpoints hold all of it but what stands still, and it lies on a mesh as it is told."""

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from genjax.parallel.mesh import Mesh
from genjax.training.state import abstract_state, from_trees, initial_state, to_trees
from tests.training.games import Game, Regression


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("decay", [0.9, None])
@pytest.mark.parametrize("task", [Regression(), Game()], ids=["regression", "game"])
def test_a_state_is_its_trees_and_what_stands_still(task, decay, precision):
    task = replace(task, train=replace(task.train, ema_decay=decay, precision=precision))
    state = initial_state(task, jax.random.key(0), {"first_stage": {"w": np.ones(2)}})
    trees = to_trees(state)
    assert not any("first_stage" in str(tree) for tree in trees.values())
    back = from_trees(trees, state.parts.fixed, averaged=decay is not None)
    chex.assert_trees_all_equal(state, back)
    assert (state.scale is None) == (precision == "fp32")
    assert (state.ema is None) == (decay is None)


@pytest.mark.filterwarnings("error")
def test_what_comes_from_elsewhere_in_float64_is_of_float32_then():
    held = {"first_stage": {"w": np.ones(2)}}
    state = initial_state(Regression(), jax.random.key(0), held)
    assert state.parts.fixed["first_stage"]["w"].dtype == np.float32


def test_no_buffer_is_held_twice():
    """A donated state must not."""
    state = initial_state(Regression(), jax.random.key(0))
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.parts.trained, state.ema))]
    assert len(set(places)) == len(places)


def test_shapes_and_places_are_known_before_anything_is_made():
    mesh = Mesh(data=4).build()
    held = {"first_stage": {"w": np.ones(2, np.float32)}}
    abstract = abstract_state(Regression(), mesh, held)
    state = initial_state(Regression(), jax.random.key(0), held)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, state)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(abstract)} == {4}


def test_what_holds_still_is_divided_as_well():
    """It may be the largest part of all."""
    held = {"first_stage": {"w": np.ones((64, 32), np.float32)}}
    fixed = abstract_state(Regression(), Mesh(data=1, fsdp=4).build(), held).parts.fixed
    assert fixed["first_stage"]["w"].sharding.shard_shape((64, 32)) == (16, 32)


def test_samples_are_drawn_with_the_average():
    state = initial_state(Regression(), jax.random.key(0))
    state = state._replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    assert state.averaged.trained is state.ema
    assert state.averaged.variables is state.parts.variables
