"""How noise goes with data in training.

Drawn     each row has noise of its own, which knows nothing of the image
Paired    each image has the noise that a trained system has drawn it from: the paths of a model that is trained on
          such pairs cross less, and are straighter (reflow, Liu et al. 2022, arXiv:2209.03003, section 2.2)
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from genjax.errors import InputError

__all__ = ["Coupling", "Drawn", "Paired"]


@runtime_checkable
class Coupling(Protocol):
    """A kind of coupling."""

    def row(self, example: Any) -> dict[str, np.ndarray]:
        """What a row of a batch holds of the noise. Raises InputError where the data has none and it needs some."""

    def eps(self, keys: Key[Array, " B"], rows: dict[str, Array], shape: tuple[int, ...]) -> Float[Array, "B *shape"]:
        """The noise of each row, of unit variance; `shape` is that of one."""


@dataclass(frozen=True)
class Drawn:
    """Noise is drawn for each row, from its key."""

    def row(self, example: Any) -> dict[str, np.ndarray]:
        return {}

    def eps(self, keys: Key[Array, " B"], rows: dict[str, Array], shape: tuple[int, ...]) -> Float[Array, "B *shape"]:
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


@dataclass(frozen=True)
class Paired:
    """Noise comes with the image, as `data` of kind Couples has it."""

    def row(self, example: Any) -> dict[str, np.ndarray]:
        if "noise" not in example:
            raise InputError("coupling is Paired, and the data has no noise that goes with its images: Couples has")
        return {"noise": example["noise"]}

    def eps(self, keys: Key[Array, " B"], rows: dict[str, Array], shape: tuple[int, ...]) -> Float[Array, "B *shape"]:
        return rows["noise"]
