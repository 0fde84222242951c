"""Players: who moves which part of a system, by which optimiser, and when.

A system with one loss has one player, who moves everything that is trained. In a game (GAN, VQGAN) every player has a
loss and a part of `trained` of its own name; all gradients come from one forward pass,

    (l_1, ..., l_n)  = losses(trained),        g_i = d l_i / d trained_i,

by linearising it once and transposing the linear map once per player. A player that moves every k-th step costs nothing
on the others: neither its gradient nor whatever only its loss needs is computed.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from genjax.errors import InputError
from genjax.training.optimizer import AdamW, Optimizer

__all__ = ["LONE", "Player", "gradients", "own_part", "replaced", "turns"]

LONE = "loss"
"""The name of a lone player, and of its loss: it moves all of `trained`."""


@dataclass(frozen=True)
class Player:
    """One who moves a part of a system."""

    optimizer: Optimizer = AdamW()
    every: int = 1
    """Moves at every so many steps, the first step included."""

    def __post_init__(self):
        if self.every < 1:
            raise InputError(f"a player moves at every step or every few, not at every {self.every}")

    def moves(self, steps: int) -> int:
        """How often it moves in a run of so many steps."""
        return math.ceil(steps / self.every)


def own_part(tree: PyTree[Array], name: str) -> PyTree[Array]:
    """What the player `name` moves, of a tree like `trained`."""
    return tree if name == LONE else tree[name]


def replaced(tree: PyTree[Array], name: str, part: PyTree[Array]) -> PyTree[Array]:
    """A tree like `trained` in which the part of the player `name` is another one."""
    return part if name == LONE else {**tree, name: part}


def turns(players: Mapping[str, Player]) -> list[tuple[str, ...]]:
    """Who moves at steps 0, 1, ... of a period, after which it all begins again."""
    period = math.lcm(*(player.every for player in players.values()))
    return [tuple(name for name, player in players.items() if step % player.every == 0) for step in range(period)]


def gradients(
    losses: Callable[[PyTree[Array]], tuple[Mapping[str, Float[Array, ""]], Any]],
    trained: PyTree[Array],
    movers: Iterable[str],
    scale: float | Float[Array, ""] = 1.0,
) -> tuple[dict[str, PyTree[Array]], Any]:
    """Each mover's gradient of `scale` times its own loss with respect to its own part, and what the pass gave besides.

    `losses(trained)` gives (losses by player, whatever else). One forward pass for all.
    """
    movers = tuple(movers)
    if movers == (LONE,):
        value, pullback, rest = jax.vjp(lambda tree: _aside(losses(tree), LONE), trained, has_aux=True)
        return {LONE: pullback(jnp.asarray(scale, value.dtype))[0]}, rest
    values, pushforward, rest = jax.linearize(lambda tree: losses(tree), trained, has_aux=True)
    found = {}
    for name in movers:
        # Of the linear map, only what leads from this part to this loss is traced, and only that is transposed.
        still = jax.tree.map(jnp.zeros_like, trained)

        def own(tangent, name=name, still=still):
            return pushforward(replaced(still, name, tangent))[name]

        (found[name],) = jax.linear_transpose(own, trained[name])(jnp.asarray(scale, values[name].dtype))
    return found, rest


def _aside(result, name):
    values, rest = result
    return values[name], rest
