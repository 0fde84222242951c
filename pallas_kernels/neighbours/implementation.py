"""Which form of an operation runs: the one that is asked for, or a refusal; without a wish, the fastest that can."""

import importlib.util
from typing import Literal, get_args

import jax

from pallas_kernels.derivatives import UNTRIED

Implementation = Literal["xla", "triton"]
"""`xla`: plain JAX, on every machine. `triton`: kernels of our own, on a GPU."""

TRITON_DTYPES = ("float32", "bfloat16", "float16")


def choose(implementation: Implementation | None, obstacle: str | None) -> Implementation:
    """`implementation`, or for None: triton on a GPU that can run it (once it has been tried there), else xla.

    `obstacle` says what the Triton form of this call cannot do (None: it can do all). Raises ValueError for an unknown
    implementation, and NotImplementedError where Triton is asked for and cannot, with what can.
    """
    if implementation is None:
        if "triton" in UNTRIED or obstacle is not None or jax.default_backend() != "gpu":
            return "xla"
        return "triton" if importlib.util.find_spec("jax_triton") else "xla"
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation is {implementation!r}, accepted are None, 'xla' and 'triton'")
    if implementation == "triton" and obstacle is not None:
        raise NotImplementedError(f"triton: {obstacle}; xla takes it")
    return implementation


def array_obstacle(*arrays: jax.Array) -> str | None:
    """What no Triton kernel here reads: the first dtype of its kind, or an empty array. None where all are fine."""
    if any(x.size == 0 for x in arrays):
        return "an empty array"
    strange = sorted({x.dtype.name for x in arrays} - set(TRITON_DTYPES))
    return f"{strange[0]}, not one of {', '.join(TRITON_DTYPES)}" if strange else None
