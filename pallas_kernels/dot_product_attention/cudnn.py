"""cuDNN's flash attention through the public function of JAX, in our normal form.

JAX rounds the log-sum-exp that it returns to the dtype of the output, too coarse to take derivatives from. So the
backward pass is the transpose of the public function, and the tangent computes its own log-sum-exp in plain JAX, as
second derivatives do, all of which are those of xla.py.

JAX refuses the backward pass of odd numbers of queries or keys, for it takes a bias to be there always. They get one
more of each, which lengths then hide.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention import xla
from pallas_kernels.dot_product_attention.problem import Settings


def forward(operands: Arrays, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """(out, lse); this lse is for nothing but its shape: asking for it is refused (capabilities.py), see `complete`."""
    out = _attend(settings)(*_inputs(operands))
    return out, jnp.full(out.shape[:-1], jnp.nan, jnp.float32)


def complete(operands: Arrays, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """(out, lse), both true, by a pass in plain JAX that can be differentiated further."""
    return xla.SECOND_ORDER.forward(operands, settings)


def tangent(tangents: Arrays, operands: Arrays, outputs, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Tangents of (out, lse)."""
    del outputs
    return xla.RULES.tangent(tangents, operands, xla.RULES.forward(operands, settings), settings)


def backward(cotangents, operands: Arrays, outputs, wanted: tuple[str, ...], settings: Settings) -> Arrays:
    """Cotangents of the operands named in `wanted`, for a cotangent of `out` alone: that of `lse` is not read."""
    del outputs
    names = ("query", "key", "value")
    found = jax.vjp(_attend(settings), *_inputs(operands))[1](cotangents[0])
    found = dict(zip(names, found, strict=True))
    shared = [name for name in wanted if operands[name].shape[0] < found[name].shape[0]]
    return {name: found[name].sum(0, keepdims=True) if name in shared else found[name] for name in wanted}


def _inputs(operands: Arrays) -> list[jax.Array]:
    batch = max(x.shape[0] for x in operands.values())
    inputs = (operands[name] for name in ("query", "key", "value"))
    return [jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in inputs]


def _attend(settings: Settings):
    window = None if settings.left is None else (settings.left, 0)

    def attend(query, key, value):
        (batch, queries), keys = query.shape[:2], key.shape[1]
        lengths = {}
        if queries % 2 or keys % 2:
            lengths["query_seq_lengths"] = jnp.full((batch,), queries, jnp.int32)
            lengths["key_value_seq_lengths"] = jnp.full((batch,), keys, jnp.int32)
        out = jax.nn.dot_product_attention(
            *(jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value)),
            scale=settings.scale,
            is_causal=settings.right == 0,
            local_window_size=window,
            implementation="cudnn",
            **lengths,
        )
        return out[:, :queries]

    return attend
