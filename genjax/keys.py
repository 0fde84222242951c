"""Seeds, and the keys of rows: where all random numbers of the device begin.

    key of row i of a batch  =  fold_in(key of the batch, i)

whatever lies beside it, so that a row does not depend on the size of its batch or on the number of devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from genjax.errors import InputError

__all__ = ["LARGEST_SEED", "check_seed", "row_keys"]

LARGEST_SEED = 2**31 - 1
"""A larger one does not fit the 32 bits that JAX has for an integer, and would be another seed there, or none."""


def check_seed(name: str, seed: int) -> None:
    """Raise InputError where the seed called `name` is none."""
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"{name} is from 0 to {LARGEST_SEED}, not {seed}")


def row_keys(seed: int | Int[Array, ""] | Key[Array, ""], index: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key per row: that of a seed (or a key), folded with the row's index, whatever the batch is."""
    key = seed if jnp.issubdtype(jnp.asarray(seed).dtype, jax.dtypes.prng_key) else jax.random.key(seed)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(index))
