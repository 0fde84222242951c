"""Classifier-free guidance of tokens: logits of what is told, led away from those of what is not.

    guided = untold + scale (told - untold)

(Ho and Salimans 2022, arXiv:2207.12598; of tokens Gafni et al. 2022, arXiv:2203.13131, section 3.4.) Rows are read
twice, the second time with another prefix of the same length; a token that is chosen goes on both. The pair is a
network as `genjax.language.decoding` takes it, and so is drawn from by the same loop.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

__all__ = ["GuidedCache", "guided", "guided_logits"]


class GuidedCache(NamedTuple):
    """What both readings of B rows hold."""

    cache: Any
    """Of 2 B rows: those that are told, then the others."""
    length: Int[Array, " B"]
    """How many tokens of each row it holds."""


def guided_logits(logits: Float[Array, "BB *T V"], scale: Float[Array, ""]) -> Float[Array, "B *T V"]:
    """The logits of B rows, led; given are those of the told rows, and then of the same untold (BB = 2 B).

    A scale of 1 is no guidance, 0 tells nothing.
    """
    told, untold = jnp.split(logits, 2)
    return untold + scale * (told - untold)


def guided(network: Partial, untold: Int[Array, " C"], scale: Float[Array, ""]) -> Partial:
    """`network(tokens (B,T), cache=GuidedCache) -> (logits (B,T,V), cache)`, of one for plain caches of 2 B rows.

    The first C tokens of a row are the prefix, in whose place the second reading has `untold`.
    """
    return Partial(_guided, network, jnp.asarray(untold), jnp.asarray(scale, jnp.float32))


def _guided(network, untold, scale, tokens: Int[Array, "B T"], *, cache: GuidedCache):
    index = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=cache.length.dtype)
    last = len(untold) - 1
    other = jnp.where(index <= last, untold[jnp.minimum(index, last)].astype(tokens.dtype), tokens)
    inner = cache.cache._replace(length=jnp.concatenate([cache.length] * 2))
    logits, inner = network(jnp.concatenate([tokens, other]), cache=inner)
    return guided_logits(logits, scale), GuidedCache(inner, cache.length + tokens.shape[1])
