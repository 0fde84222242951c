"""What a run holds of its system: the parts that learn, those that hold still, and state that no gradient moves.

    trained      parameters; what optimisers move and averages follow
    fixed        frozen parameters: a first stage, a reference model, a base that adapters sit on; in no checkpoint
    variables    state without a gradient: codebooks that follow a mean, router biases, running statistics

Each is a nested dict of arrays, so that it can be written as it is. In a game of several players `trained` has one
entry per player, of the player's name.
"""

from typing import NamedTuple

from jaxtyping import Array, PyTree

__all__ = ["Parts"]


class Parts(NamedTuple):
    """The parts of a system, three nested dicts of arrays."""

    trained: PyTree[Array]
    fixed: PyTree[Array] = {}
    variables: PyTree[Array] = {}
