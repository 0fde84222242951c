r"""The loss of language models (Bengio et al. 2003, section 2): how surprised they are by each next token, in nats.

    loss_t = log sum_v exp(z_tv) - z_t,y        y = token_{t+1}, where it is of the same document as token_t

Documents packed into one row say nothing of each other: every shift of such rows goes through `shifted_targets`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["bits_per_byte", "cross_entropy", "next_token_loss", "shifted_targets"]


def shifted_targets(
    tokens: Int[Array, "B T"], segments: Int[Array, "B T"] | None = None, *, by: int = 1
) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
    """(the token `by` places later, whether there is one): it must be in the row, and of the same document.

    `segments` are the documents of a packed row, a run of one id each, negative for padding; None: a row is one
    document. Where there is no target it is 0. Raises ValueError where `by` is below 1.
    """
    if by < 1:
        raise ValueError(f"targets lie by = {by} places later; accepted are numbers from 1")
    segments = jnp.zeros_like(tokens) if segments is None else segments
    later = jnp.pad(segments[:, by:], ((0, 0), (0, min(by, tokens.shape[1]))), constant_values=-1)
    has_target = (later == segments) & (segments >= 0)
    targets = jnp.pad(tokens[:, by:], ((0, 0), (0, min(by, tokens.shape[1]))))
    return jnp.where(has_target, targets, 0), has_target


def next_token_loss(
    logits: Float[Array, "B T V"],
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
    mask: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """(the loss of the token after each token, in nats, float32; which of them count). A loss that does not is 0.

    `segments` as in `shifted_targets`; `mask` says which tokens are worth predicting (of an answer, not of its
    question): the loss at t counts where the mask holds for the token at t + 1. Sum both, over whatever devices and
    micro-batches there are, before dividing.
    """
    targets, counts = shifted_targets(tokens, segments)
    if mask is not None:
        wanted, _ = shifted_targets(mask.astype(tokens.dtype), segments)
        counts &= wanted != 0
    return jnp.where(counts, cross_entropy(logits, targets), 0.0), counts


def cross_entropy(logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """-log softmax(logits)[target], in nats, float32 whatever the logits are in."""
    logits = logits.astype(jnp.float32)
    logits -= jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))  # a small loss is no difference of large logits
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.log(jnp.exp(logits).sum(axis=-1)) - chosen


def bits_per_byte(nats: float, count: int) -> float:
    """The length that an arithmetic coder would reach: a sum of losses in nats, of text of `count` bytes.

    It does not depend on how text is cut into tokens, and compares with compressors: 8 is no compression.
    """
    return nats / math.log(2) / count
