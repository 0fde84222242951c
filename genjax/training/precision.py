"""Mixed precision: parameters stay in float32, the network computes in the policy's type, sums are float32."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

__all__ = ["POLICIES", "Policy", "Precision", "cast"]

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Policy:
    """The types of parameters, of what networks compute, and of losses and sums of gradients."""

    param: DTypeLike
    compute: DTypeLike
    accumulate: DTypeLike


POLICIES: dict[Precision, Policy] = {
    "fp32": Policy(jnp.float32, jnp.float32, jnp.float32),
    "bf16": Policy(jnp.float32, jnp.bfloat16, jnp.float32),
    "fp16": Policy(jnp.float32, jnp.float16, jnp.float32),  # with loss_scale.py
}


def cast(tree: PyTree[Array], dtype: DTypeLike) -> PyTree[Array]:
    """`tree` with its floating-point leaves in `dtype`; gradients through it come back in the original type."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)
