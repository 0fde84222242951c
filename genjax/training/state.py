"""The state of a run: everything that a checkpoint must hold, but the position in the data."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from genjax.parallel.rules import mirrored, state_shardings, unbox
from genjax.runs.parts import Parts
from genjax.training.loss_scale import LossScale, first_scale
from genjax.training.players import own_part
from genjax.training.task import Task

__all__ = ["TrainState", "abstract_state", "from_trees", "initial_state", "to_trees"]


class TrainState(NamedTuple):
    """One tree; a pure function takes it from step to step."""

    step: Int[Array, ""]
    """Batches seen."""
    updates: dict[str, Int[Array, ""]]
    """Batches that changed the parameters, by player."""
    skipped_in_a_row: Int[Array, ""]
    """Batches since the last finite one; overflows of float16 are not counted."""
    scale: LossScale | None
    """Of the loss, in float16 only."""
    parts: Parts
    ema: PyTree[Array] | None
    """The average of `parts.trained`, if one is kept."""
    optimizer: dict[str, PyTree[Array]]
    """By player."""

    @property
    def averaged(self) -> Parts:
        """The parts that samples are drawn with."""
        return self.parts if self.ema is None else self.parts._replace(trained=self.ema)


def initial_state(task: Task, key: Key[Array, ""], held: Mapping[str, PyTree[Array]] = {}) -> TrainState:
    """The state before the first step; pure. `held` are parts that hold still and come from elsewhere."""
    parts = unbox(task.init(key))
    parts = parts._replace(fixed={**parts.fixed, **held})
    parts = jax.tree.map(_strong, parts)
    players = task.players()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        updates={name: jnp.zeros((), jnp.int32) for name in players},
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        scale=first_scale() if task.train.precision == "fp16" else None,
        parts=parts,
        # The average is a copy: a donated state must not hold one buffer twice.
        ema=None if task.train.ema_decay is None else jax.tree.map(jnp.copy, parts.trained),
        optimizer={
            name: player.optimizer.build(player.moves(task.train.steps)).init(own_part(parts.trained, name))
            for name, player in players.items()
        },
    )


def _strong(leaf: Array) -> Array:
    """In a type of its own that JAX has: a weak one would change after the first update, and compile it twice."""
    leaf = jnp.asarray(leaf)  # What comes from elsewhere may be of float64, which JAX is not asked for by name.
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def abstract_state(task: Task, mesh: jax.sharding.Mesh, held: Mapping[str, PyTree[Array]] = {}) -> TrainState:
    """Shapes, types and shardings of the state on a mesh, of `jax.ShapeDtypeStruct`."""
    key, held = jax.random.key(0), dict(held)
    state = jax.eval_shape(lambda key, held: initial_state(task, key, held), key, held)
    trained = state.parts.trained
    of_trained = state_shardings(mesh, jax.eval_shape(task.init, key).trained)
    places = mirrored(state, trained, of_trained)
    # What stands still mirrors nothing, and may be the largest part of all.
    fixed = state_shardings(mesh, state.parts.fixed)
    # A player's moments name its own parameters, without its name.
    optimizer = {
        name: mirrored(moments, own_part(trained, name), own_part(of_trained, name))
        for name, moments in state.optimizer.items()
    }
    places = places._replace(parts=places.parts._replace(fixed=fixed), optimizer=optimizer)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)


def to_trees(state: TrainState) -> dict[str, Any]:
    """The state as the named trees of a checkpoint, without the parts that hold still."""
    counters = {"step": state.step, "updates": state.updates, "skipped_in_a_row": state.skipped_in_a_row}
    return {
        "trained": state.parts.trained,
        "variables": state.parts.variables,
        "ema": {} if state.ema is None else state.ema,
        "optimizer": state.optimizer,
        "counters": counters if state.scale is None else counters | {"scale": state.scale},
    }


def from_trees(trees: dict[str, Any], fixed: PyTree[Array], *, averaged: bool) -> TrainState:
    """The state of which `to_trees` gave the trees."""
    counters = dict(trees["counters"])
    return TrainState(
        scale=counters.pop("scale", None),
        parts=Parts(trees["trained"], fixed, trees["variables"]),
        ema=trees["ema"] if averaged else None,
        optimizer=trees["optimizer"],
        **counters,
    )
