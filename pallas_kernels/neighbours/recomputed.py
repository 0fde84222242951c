"""The rules of a fused function by autodiff, recomputing what autodiff alone would keep."""

from collections.abc import Callable, Hashable

import jax

from pallas_kernels.derivatives import Arrays, Rules


def recomputed(forward: Callable[[Arrays, Hashable], tuple[jax.Array, ...]]) -> Rules:
    """The rules of a plain function `forward(operands, settings) -> outputs`, by autodiff.

    Autodiff of the function itself would keep its intermediates, in float32, until the backward pass; as rules of a
    `Fused` these keep its operands and outputs, and compute the rest again.
    """

    def tangent(tangents, operands, outputs, settings):
        moving = {name: operands[name] for name in tangents}
        return jax.jvp(lambda given: tuple(forward(operands | given, settings)), (moving,), (tangents,))[1]

    def backward(cotangents, operands, outputs, wanted, settings):
        given = {name: operands[name] for name in wanted}
        _, pullback = jax.vjp(lambda given: tuple(forward(operands | given, settings)), given)
        return pullback(tuple(cotangents))[0]

    return Rules(lambda operands, settings: tuple(forward(operands, settings)), tangent, backward)
