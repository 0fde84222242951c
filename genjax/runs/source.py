"""Where weights come from that a run begins with: another run, a run that ships, or a file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from genjax import config
from genjax.errors import InputError
from genjax.interop.trees import read_tree
from genjax.runs.directory import find_run
from genjax.runs.parts import Parts
from genjax.runs.weights import misfit, read_weights

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Weights that lie somewhere; a run is read by its averaged weights."""

    path: str | None = None
    """A run directory, the name of a run that ships, or a .safetensors file in our layout; None for nothing."""
    part: str = ""
    """Dotted name of the tree to take from there ("model.blocks"); all of it when empty."""
    allow: tuple[str, ...] = field(default=(), metadata={"may_change": True})
    """Packages outside genjax that the config of that run may import."""

    def __bool__(self) -> bool:
        return self.path is not None

    def read(self) -> PyTree[Array]:
        """The nested dict of arrays. Raises InputError where there is none, or no such part."""
        if Path(self.path).suffix == ".safetensors":
            tree, _ = read_tree(self.path)
        else:
            tree = self.run()[1].trained
        for name in filter(None, self.part.split(".")):
            if not isinstance(tree, dict) or name not in tree:
                raise InputError(f"{self.path} holds no part {self.part!r}: at {name!r} there are {_names(tree)}")
            tree = tree[name]
        return tree

    def run(self) -> tuple[Any, Parts]:
        """The task of the run, and all of its parts. Raises InputError where the path is not a run."""
        directory = find_run(self.path).directory
        task = config.read(directory / "config.json", allow=config.allowed(self.allow))
        return task, read_weights(directory, task)[0]

    def check(self, tree: PyTree[Array]) -> None:
        """Raise InputError where weights, read now or held by a run that goes on, are not those that are meant."""

    def read_as(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
        """As `read`, in the types of `shapes`. Raises InputError where the arrays are not those that are needed."""
        tree = self.read()
        if difference := misfit(tree, shapes):
            raise InputError(f"the weights of {self.path} are not those that this run needs: {difference}")
        return jax.tree.map(lambda leaf, shape: np.asarray(leaf, shape.dtype), tree, dict(shapes))


def _names(tree: Any) -> str:
    return ", ".join(tree) if isinstance(tree, dict) else "no names"
