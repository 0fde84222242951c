"""A picture larger than those that a network of tokens was trained on, token by token, through a window.

At each place the network sees the window around it, as a picture of its own: the place lies in the middle of the
window, but near the borders, where the window stays within the picture (Esser et al. 2021, arXiv:2012.09841, section
3.2, and figure 3). It is drawn so, not trained so. A picture of the window's size is drawn as without a window.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from genjax.errors import InputError

__all__ = ["slide", "window_start"]


def window_start(place: Int[Array, ""] | int, size: int, window: int) -> Int[Array, ""]:
    """Where along a side of `size` places the window begins in which `place` is drawn."""
    half = window // 2
    return jnp.clip(jnp.asarray(place) - half, 0, size - window)


def slide(
    network: Callable[[Int[Array, "B h w"]], Float[Array, "B h*w V"]],
    choose: Callable[[Array, Array], Array],
    keys: Key[Array, " B"],
    shape: tuple[int, int],
    window: tuple[int, int],
    *,
    before: int = 0,
) -> Int[Array, "B H W"]:
    """Tokens of pictures of `shape`, in the order of reading.

    `network(tokens of a window) -> logits of each of its places by those before it`; `choose(logits (B,V), keys (B,))`
    draws. The token at place i is drawn with fold_in(the row's key, before + i), as by `genjax.language.decoding` after
    a prefix of `before` tokens. Raises InputError where the window is larger than the picture.
    """
    (rows, columns), (height, width) = shape, window
    if height > rows or width > columns:
        raise InputError(f"a picture of {rows}x{columns} tokens is smaller than the window of {height}x{width}")

    def step(place, tokens):
        row, column = place // columns, place % columns
        top, left = window_start(row, rows, height), window_start(column, columns, width)
        seen = jax.lax.dynamic_slice(tokens, (0, top, left), (len(keys), height, width))
        logits = network(seen)[:, (row - top) * width + column - left]
        token = choose(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, before + place))
        return tokens.at[:, row, column].set(token)

    return jax.lax.fori_loop(0, rows * columns, step, jnp.zeros((len(keys), rows, columns), jnp.int32))
