"""Finite scalar quantisation: every coordinate is rounded to a few levels (Mentzer et al. 2023, arXiv:2309.15505).

    z_q = round(f(z)) / floor(L / 2),    f(z) = h tanh(z + atanh(o / h)) - o,    h = (L - 1)(1 + 1e-3) / 2

with o = 1/2 for an even number of levels L and 0 for an odd one, so that f(0) = 0 and exactly L integers are reached.
The codebook is the grid of all combinations: nothing is learned, no entry dies, and there is no loss. The number of a
code is that of its digits, the first coordinate counting fastest.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.errors import InputError
from genjax.quantisation.quantiser import Quantised, Vectors, straight_through, wide

__all__ = ["FSQ"]


@dataclass(frozen=True)
class FSQ:
    """Codes of a grid. The paper recommends 8,6,5 (240 codes), 8,5,5,5 (1000), 7,5,5,5,5 (4375), 8,8,8,6,5 (15360)."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels of each coordinate."""

    def __post_init__(self):
        if not self.levels or min(self.levels) < 2:
            raise InputError(f"FSQ has at least one coordinate, each of at least 2 levels, not {self.levels}")
        if max(self.levels) > 1000 or self.size >= 2**31:
            raise InputError(f"FSQ has at most 1000 levels each and fewer than 2^31 codes, not {self.levels}")

    @property
    def size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    @property
    def width(self) -> int:
        """Number of coordinates."""
        return len(self.levels)

    @property
    def ids_per_position(self) -> int:
        """One."""
        return 1

    def init(self, key: Key[Array, ""]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Nothing."""
        return {}, {}

    def bounded(self, z: Vectors) -> Vectors:
        """f(z): within half a level, and a thousandth, of the integers that are reached."""
        levels = np.asarray(self.levels)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        return half * jnp.tanh(z + np.arctanh(offset / half)) - offset

    def __call__(self, z: Vectors, params: PyTree[Array], variables: PyTree[Array]) -> Quantised:
        bounded = self.bounded(wide(z, self))
        integers = straight_through(bounded, jnp.round(bounded))
        half_width = np.asarray(self.levels) // 2
        digits = jnp.round(bounded).astype(jnp.int32) + half_width
        return Quantised(integers / half_width, jnp.sum(digits * self.place_values(), axis=-1), {})

    def codes(self, ids: Int[Array, "*N"], params: PyTree[Array], variables: PyTree[Array]) -> Float[Array, "*N D"]:
        levels = np.asarray(self.levels)
        digits = ids[..., None] // self.place_values() % levels
        return (digits - levels // 2) / (levels // 2).astype(np.float32)

    def advance(self, variables: PyTree[Array], statistics: PyTree[Array]) -> PyTree[Array]:
        return variables

    def place_values(self) -> np.ndarray:
        """What a digit of each coordinate counts."""
        return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)
