"""The rules of attention on Triton. The kernels are imported when they are first called, for Triton is optional."""

from collections.abc import Sequence

import jax

from pallas_kernels.derivatives import Arrays, Rules
from pallas_kernels.dot_product_attention.problem import Settings


def forward(operands: Arrays, settings: Settings) -> tuple[jax.Array, ...]:
    """See forward.py."""
    installed()
    from pallas_kernels.triton import forward

    return forward.forward(operands, settings)


def tangent(
    tangents: Arrays, operands: Arrays, outputs: Sequence[jax.Array], settings: Settings
) -> tuple[jax.Array, ...]:
    """See tangent.py."""
    installed()
    from pallas_kernels.triton import tangent

    return tangent.tangent(tangents, operands, outputs, settings)


def backward(
    cotangents: Sequence[jax.Array],
    operands: Arrays,
    outputs: Sequence[jax.Array],
    wanted: tuple[str, ...],
    settings: Settings,
) -> Arrays:
    """See backward.py."""
    installed()
    from pallas_kernels.triton import backward

    return backward.backward(cotangents, operands, outputs, wanted, settings)


def installed() -> None:
    """Raises NotImplementedError, which says what to install, where Triton is missing."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise NotImplementedError("triton: it is not installed; pip install genjax[cuda] installs it") from error


RULES = Rules(forward, tangent, backward)
"""Implementation `triton` of attention."""
