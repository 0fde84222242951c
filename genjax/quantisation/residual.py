"""Residual quantisation: a code is a sum of codes, each of what those before it left (Juang and Gray 1982).

    r_0 = z,    q_i = quantiser_i(r_i),    r_{i+1} = r_i - sg(q_i),    z_q = q_0 + ... + q_{Q-1}

(Lee et al. 2022, arXiv:2203.01941, equation 2, of images; Zeghidour et al. 2021 of sound.) With Q codebooks of K
entries there are K^Q codes, of Q log2 K bits. All levels are one quantiser with entries of its own at each level, run
by a scan. The estimate of the gradient is made once, of the sum: that of each level would count z Q times.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.errors import InputError
from genjax.quantisation.quantiser import ESTIMATES, Estimate, Quantised, Vectors, wide
from genjax.quantisation.vector import VQ, AverageVQ

__all__ = ["Residual"]


@dataclass(frozen=True)
class Residual:
    """Codes that are sums. Params and variables are those of the level, stacked along a first axis of `depth`."""

    level: VQ | AverageVQ = AverageVQ()
    """What quantises at each level; the estimate is not its own."""
    depth: int = 2
    """Levels, Q."""
    estimate: Estimate = "straight_through"
    """The gradient through the choice of all."""

    def __post_init__(self):
        if self.depth < 1:
            raise InputError(f"Residual has at least 1 level, not {self.depth}")
        if self.level.estimate != "straight_through":
            raise InputError("the level of Residual has no estimate of its own: that of the sum is told to Residual")
        if self.level.normalised:
            raise InputError("the level of Residual is not normalised: what a code leaves has a length of its own")

    @property
    def size(self) -> int:
        """Ids of one level."""
        return self.level.size

    @property
    def width(self) -> int:
        """Coordinates of a vector."""
        return self.level.width

    @property
    def ids_per_position(self) -> int:
        """One of each level."""
        return self.depth

    def init(self, key: Key[Array, ""]) -> tuple[PyTree[Array], PyTree[Array]]:
        """Fresh levels, each of its own key."""
        return jax.vmap(self.level.init)(jax.random.split(key, self.depth))

    def __call__(self, z: Vectors, params: PyTree[Array], variables: PyTree[Array]) -> Quantised:
        z = wide(z, self)

        def at_level(rest, own):
            said = self.level(rest, *own)
            code = self.level.codes(said.ids, *own)
            return rest - jax.lax.stop_gradient(code), (code, said.ids, said.losses, said.statistics)

        _, (codes, ids, losses, statistics) = jax.lax.scan(at_level, z, (params, variables), length=self.depth)
        z_q = ESTIMATES[self.estimate](z, jnp.sum(codes, axis=0))
        summed = {name: jnp.sum(loss, axis=0) for name, loss in losses.items()}
        return Quantised(z_q, jnp.moveaxis(ids, 0, -1), summed, statistics)

    def codes(self, ids: Int[Array, "*N Q"], params: PyTree[Array], variables: PyTree[Array]) -> Float[Array, "*N D"]:
        """Sums of the codes of all levels; of fewer ids than levels, those of the first."""
        depth = ids.shape[-1]
        own = jax.tree.map(lambda x: x[:depth], (params, variables))
        return jnp.sum(jax.vmap(self.level.codes)(jnp.moveaxis(ids, -1, 0), *own), axis=0)

    def advance(self, variables: PyTree[Array], statistics: PyTree[Array]) -> PyTree[Array]:
        return jax.vmap(self.level.advance)(variables, statistics) if jax.tree.leaves(variables) else variables
