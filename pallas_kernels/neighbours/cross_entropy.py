r"""Softmax cross-entropy of a linear head, without the logits of all tokens over the whole vocabulary.

    z    = hidden @ weights + bias,    z = soft_cap * tanh(z / soft_cap)       (both optional)
    lse  = log sum_v exp(z_v)
    loss = lse - (1 - smoothing) z_label - smoothing mean_v(z_v)              (Szegedy et al. 2016, arXiv:1512.00567, 7)

The vocabulary is cut into chunks. Forward: the log-sum-exp runs over them. Backward: since lse is known, a chunk gives
its own part of the gradient and needs no other,

    dz_v = (dloss + dlse) exp(z_v - lse) - dloss ((1 - smoothing) [v = label] + smoothing / V),

so that the gradient of a column of the head is computed once and needs no buffer in float32. Logits, sums and
log-sum-exp are in float32 (float64 for float64). The idea of recomputing logits chunk by chunk is that of Liger Kernel
(Hsu et al. 2024, arXiv:2410.10989) and Cut Cross-Entropy (Wijmans et al. 2024, arXiv:2411.09009).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.derivatives import Arrays, Fused, Rules
from pallas_kernels.neighbours.recomputed import recomputed

LOGITS_AT_ONCE = 2**20
"""How many logits a chunk holds where tokens are few and the caller does not say: 4 MiB, which fit in a CPU's cache."""
COLUMNS_AT_ONCE = 1024
"""The least columns of such a chunk: enough arithmetic for every element of the gradient that it adds to."""

HEAD = ("weights", "bias")
"""Operands that belong to the head; the others belong to tokens."""


@dataclass(frozen=True)
class Settings:
    """What is static in a cross-entropy."""

    soft_cap: float | None
    smoothing: float
    ignored: int
    chunk: int
    """Columns of the head that are multiplied at once."""


def linear_cross_entropy(
    hidden: Float[Array, "*batch D"],
    weights: Float[Array, "D V"],
    labels: Int[Array, "*batch"],
    bias: Float[Array, " V"] | None = None,
    *,
    soft_cap: float | None = None,
    label_smoothing: float = 0.0,
    ignored: int = -100,
    chunk: int | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """(loss, lse) of every token, in nats, float32 (float64 for float64 hidden states); lse is what a z-loss squares.

    Labels are in [0, V), or `ignored`: there loss and lse are 0 and have no gradient; the loss of any other label is
    nan. `chunk` is the number of columns of the head that are multiplied at once; temporary memory is some
    (tokens, chunk) in float32. One form for all machines. Raises ValueError where shapes disagree, label_smoothing is
    outside [0, 1] or chunk below 1.
    """
    width, vocabulary = weights.shape
    tokens = labels.size
    if hidden.shape != (*labels.shape, width):
        raise ValueError(f"hidden has shape {hidden.shape}, accepted is {(*labels.shape, width)}")
    if bias is not None and bias.shape != (vocabulary,):
        raise ValueError(f"bias has shape {bias.shape}, accepted is ({vocabulary},)")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, accepted are numbers from 0 to 1")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}, accepted are numbers of columns from 1")
    if chunk is None:
        chunk = max(LOGITS_AT_ONCE // max(tokens, 1) // 128 * 128, COLUMNS_AT_ONCE)
    operands = {"hidden": hidden.reshape(1, tokens, width), "weights": weights[None], "labels": labels.reshape(1, -1)}
    if bias is not None:
        operands["bias"] = bias[None]
    settings = Settings(soft_cap, label_smoothing, ignored, min(chunk, vocabulary))
    loss, lse = _FUSED(operands, settings)
    return loss.reshape(labels.shape), lse.reshape(labels.shape)


# The normal form: hidden (1|B,M,D), weights (1|B,D,V), labels (1|B,M), optional bias (1|B,V); outputs (B,M), (B,M).


def _shapes(operands: Arrays, settings: Settings) -> list[jax.ShapeDtypeStruct]:
    batch = max(x.shape[0] for x in operands.values())
    out = jax.ShapeDtypeStruct((batch, operands["labels"].shape[1]), _accumulator(operands))
    return [out, out]


def _accumulator(operands: Arrays) -> jnp.dtype:
    return jnp.promote_types(operands["hidden"].dtype, jnp.float32)


def _forward(operands: Arrays, settings: Settings) -> tuple[jax.Array, jax.Array]:
    found = _over_heads(lambda operands, _: _loss(operands, settings), operands, ())
    return found["loss"], found["lse"]


def _backward(cotangents, operands: Arrays, outputs, wanted: tuple[str, ...], settings: Settings) -> Arrays:
    def run(operands, given):
        return _gradients(operands, *given, wanted, settings)

    found = _over_heads(run, operands, (*cotangents, outputs[1]))
    for name, x in found.items():
        if operands[name].shape[0] < x.shape[0]:
            found[name] = x.sum(0, keepdims=True, dtype=_accumulator(operands)).astype(x.dtype)
    return found


def _over_heads(run: Callable[[Arrays, tuple], Arrays], operands: Arrays, given: tuple) -> Arrays:
    """`run` for every sample in turn; or, where all of them share one head, at once for the tokens of all.

    `operands` and `given` come with an axis of samples, and lose it for `run`; the results have it again.
    """
    batch = max(x.shape[0] for x in (*operands.values(), *given))
    head = {name: operands[name] for name in HEAD if name in operands}
    own = batch > 1 and any(x.shape[0] > 1 for x in head.values())

    def spread(x):
        return jnp.broadcast_to(x, (batch, *x.shape[1:]))

    tokens = {name: spread(operands[name]) for name in ("hidden", "labels")}
    given = tuple(map(spread, given))
    if own:
        return jax.lax.map(lambda sample: run(*sample), (tokens | {name: spread(x) for name, x in head.items()}, given))
    flat, flat_given = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (tokens, given))
    found = run(flat | {name: x[0] for name, x in head.items()}, flat_given)
    return {name: x[None] if name in HEAD else x.reshape(batch, -1, *x.shape[1:]) for name, x in found.items()}


def _loss(operands: Arrays, settings: Settings) -> Arrays:
    """loss (M,) and lse (M,) of hidden (M,D), weights (D,V), labels (M,), bias (V,)."""
    labels, dtype = operands["labels"], _accumulator(operands)

    def chunk(carry, start, columns):
        lse, picked, total = carry
        z = _logits(operands, start, columns, settings)
        hit = labels[:, None] == start + jnp.arange(columns)
        lse = jnp.logaddexp(lse, jax.nn.logsumexp(z, axis=1))
        return lse, picked + jnp.where(hit, z, 0).sum(1), total + z.sum(1)

    zeros = jnp.zeros(labels.shape, dtype)
    lse, picked, total = _over_chunks(chunk, (zeros - jnp.inf, zeros, zeros), operands, settings)
    loss = lse - (1 - settings.smoothing) * picked
    if settings.smoothing:
        loss = loss - settings.smoothing / operands["weights"].shape[1] * total
    seen, known = labels != settings.ignored, (labels >= 0) & (labels < operands["weights"].shape[1])
    loss = jnp.where(known, loss, jnp.nan)  # a label that does not exist should be noticed
    return {"loss": jnp.where(seen, loss, 0), "lse": jnp.where(seen, lse, 0)}


def _gradients(operands: Arrays, dloss, dlse, lse, wanted: tuple[str, ...], settings: Settings) -> Arrays:
    """The gradients that are `wanted` of hidden (M,D), weights (D,V) and bias (V,)."""
    hidden, weights, labels = operands["hidden"], operands["weights"], operands["labels"]
    dtype, smoothing, vocabulary = _accumulator(operands), settings.smoothing, weights.shape[1]
    seen = (labels != settings.ignored)[:, None]
    dloss, dlse = (jnp.where(seen, x[:, None], 0) for x in (dloss, dlse))

    def chunk(found, start, columns):
        z = _logits(operands, start, columns, settings)
        hit = labels[:, None] == start + jnp.arange(columns)
        probability = jnp.exp(jnp.where(seen, z - lse[:, None], -jnp.inf))
        target = (1 - smoothing) * hit + smoothing / vocabulary
        dz = (dloss + dlse) * probability - dloss * target
        if settings.soft_cap is not None:
            dz = dz * (1 - jnp.square(z / settings.soft_cap))
        found = dict(found)
        if "bias" in found:
            found["bias"] = _put(found["bias"], dz.sum(0), start, 0)
        dz = dz.astype(hidden.dtype)
        if "hidden" in found:
            head = jax.lax.dynamic_slice_in_dim(weights, start, columns, 1)
            found["hidden"] += jnp.dot(dz, head.T, preferred_element_type=dtype)
        if "weights" in found:
            found["weights"] = _put(found["weights"], jnp.dot(hidden.T, dz, preferred_element_type=dtype), start, 1)
        return found

    zeros = {name: jnp.zeros(operands[name].shape, operands[name].dtype) for name in wanted}
    if "hidden" in wanted:
        zeros["hidden"] = zeros["hidden"].astype(dtype)
    found = _over_chunks(chunk, zeros, operands, settings)
    return {name: x.astype(operands[name].dtype) for name, x in found.items()}


def _put(whole: jax.Array, part: jax.Array, start, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, axis)


def _logits(operands: Arrays, start, columns: int, settings: Settings) -> jax.Array:
    """Logits (M, columns) of the vocabulary from `start` on."""
    head = jax.lax.dynamic_slice_in_dim(operands["weights"], start, columns, 1)
    z = jnp.dot(operands["hidden"], head, preferred_element_type=_accumulator(operands))
    if "bias" in operands:
        z = z + jax.lax.dynamic_slice_in_dim(operands["bias"], start, columns).astype(z.dtype)
    return z if settings.soft_cap is None else settings.soft_cap * jnp.tanh(z / settings.soft_cap)


def _over_chunks(chunk, carry, operands: Arrays, settings: Settings):
    """`chunk(carry, start, columns)` along the vocabulary; the last one may be shorter."""
    columns, vocabulary = settings.chunk, operands["weights"].shape[1]
    whole = vocabulary // columns
    # Second derivatives recompute the chunk too, rather than keeping all of them.
    body = jax.checkpoint(lambda carry, start: (chunk(carry, start, columns), None))
    carry, _ = jax.lax.scan(body, carry, columns * jnp.arange(whole))
    return chunk(carry, whole * columns, vocabulary % columns) if vocabulary % columns else carry


_XLA = Rules(_forward, recomputed(_forward).tangent, _backward)
_FUSED = Fused("linear_cross_entropy", {"xla": _XLA}, second_order=_XLA, shapes=_shapes)
