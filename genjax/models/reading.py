"""How a decoder reads tokens into a cache: its blocks run one after the other, from a stack that is taken apart once.

A network here has the parameters of its blocks under "blocks", stacked; `block((x, cache), *options)` gives
((x, cache), None), which a scan over the stack calls too. To write a token is to read every weight and all of the cache
once, and a scan would copy each layer's part out of the stack first.
"""

import operator
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from genjax.nn.kv_cache import KVCache

__all__ = ["Read", "apart", "read_blocks", "reader"]


def reader(model: nn.Module, params: PyTree[Array]) -> Partial:
    """`network(tokens (B,T), cache=cache) -> (logits (B,T,V), cache)`, a pytree; the blocks are taken apart once.

    It holds a second copy of their weights.
    """
    return Partial(Read(model), params | {"blocks": apart(params["blocks"])})


@dataclass(frozen=True)
class Read:
    """A network as a function of parameters and tokens; equal for equal networks, which share what is compiled."""

    model: nn.Module

    def __call__(self, params, tokens, *, cache):
        return self.model.apply({"params": params}, tokens, cache=cache)


def apart(blocks: PyTree[Array] | tuple) -> tuple[PyTree[Array], ...]:
    """The parameters of each block, from those of the stack; what is apart already stays."""
    if isinstance(blocks, tuple):
        return blocks
    depth = len(jax.tree.leaves(blocks)[0])
    return tuple(jax.tree.map(operator.itemgetter(layer), blocks) for layer in range(depth))


def read_blocks(
    block: nn.Module, blocks: PyTree[Array] | tuple, x: Float[Array, "B T D"], cache: KVCache, *options: Any
) -> tuple[Float[Array, "B T D"], KVCache]:
    """(x behind all blocks, the cache with these tokens); `blocks` are the parameters, stacked or apart."""
    layers = []
    for params, layer in zip(apart(blocks), cache.layers, strict=True):
        (x, layer), _ = block.apply({"params": params}, (x, layer), *options)
        layers.append(layer)
    return x, KVCache(tuple(layers), cache.length + x.shape[1])
