r"""Decoding: from the logits of the next token to text, token by token, in a compiled loop.

Filters are functions from logits to logits, one after the other; -inf is a token that cannot come.

    temperature   z / T;  T = 0: the first of the largest logits alone (greedy)
    top-k         the k largest logits, and what equals the smallest of them   (Fan et al. 2018, arXiv:1805.04833)
    top-p         the fewest tokens, largest first, whose mass reaches p       (Holtzman et al. 2020, arXiv:1904.09751)
    min-p         what is at least min_p times as probable as the likeliest    (Nguyen et al. 2024, arXiv:2407.01082)

The network is a callback `network(tokens (B,T), cache=cache) -> (logits (B,T,V), cache)`. Its cache is a NamedTuple
with the `length` (B,) of each row: the network writes behind it, and setting it back forgets. The callback passes
through `jit`, and so is a pytree, such as a `jax.tree_util.Partial` of a function and parameters.

The token at place i of a row is drawn with fold_in(the row's key, i), and so does not depend on the rest of the batch,
on padding, or on how many tokens a compiled call makes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from genjax.errors import InputError

__all__ = [
    "Choose",
    "Decoding",
    "Filters",
    "Network",
    "TokenSampler",
    "advance",
    "generate",
    "min_p",
    "prefill",
    "temperature",
    "top_k",
    "top_p",
]

Network = Callable[..., tuple[Array, Any]]
Choose = Callable[[Array, Array], Array]


def temperature(logits: Float[Array, "*B V"], value: float) -> Float[Array, "*B V"]:
    """Logits divided by `value`, which is at least 0; at 0 the first of the largest logits is 0 and the rest -inf."""
    if value == 0:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf).astype(logits.dtype)
    return logits / value


def top_k(logits: Float[Array, "*B V"], k: int) -> Float[Array, "*B V"]:
    """Keeps the k largest logits, and those that equal the smallest of them; k is at least 1."""
    smallest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < smallest, -jnp.inf, logits)


def top_p(logits: Float[Array, "*B V"], p: float) -> Float[Array, "*B V"]:
    """Keeps a token where those before it, the larger ones and of equal ones the first, have less than p together.

    p is in (0, 1]; 1 keeps all.
    """
    if p >= 1:  # rounded sums reach 1 before the last token
        return logits
    order = jnp.argsort(-logits, axis=-1, stable=True)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    keeps = jnp.take_along_axis(before < p, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(keeps, logits, -jnp.inf)


def min_p(logits: Float[Array, "*B V"], p: float) -> Float[Array, "*B V"]:
    """Keeps tokens with at least p times the probability of the most probable one; p is in [0, 1]."""
    if p <= 0:
        return logits
    return jnp.where(logits < logits.max(axis=-1, keepdims=True) + np.log(p), -jnp.inf, logits)


@dataclass(frozen=True)
class Filters:
    """Which tokens may come, and how often: the filters that are given, in the order of the fields.

    Raises InputError where a field is out of its range.
    """

    temperature: float = 1.0
    """Below 1: likelier tokens more often; 0: always the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that have this mass together, above 0 and at most 1."""
    min_p: float | None = None
    """Draw from tokens at least this many times as likely as the likeliest, 0 to 1."""

    def __post_init__(self):
        laws = [
            (0 <= self.temperature < float("inf"), f"temperature is {self.temperature}; it is a number from 0"),
            (self.top_k is None or self.top_k >= 1, f"top_k is {self.top_k}; it is at least 1"),
            (self.top_p is None or 0 < self.top_p <= 1, f"top_p is {self.top_p}; it is above 0 and at most 1"),
            (self.min_p is None or 0 <= self.min_p <= 1, f"min_p is {self.min_p}; it is from 0 to 1"),
        ]
        for holds, sentence in laws:
            if not holds:
                raise InputError(f"{sentence}.")

    def filtered(self, logits: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
        """Logits in float32 whose softmax is what tokens are drawn from."""
        logits = temperature(logits.astype(jnp.float32), self.temperature)
        for keep, value in ((top_k, self.top_k), (top_p, self.top_p), (min_p, self.min_p)):
            if value is not None:
                logits = keep(logits, value)
        return logits


@dataclass(frozen=True)
class TokenSampler(Filters):
    """How a token is chosen from logits: the filters, then a draw."""

    def __call__(self, logits: Float[Array, "B V"], keys: Key[Array, " B"]) -> Int[Array, " B"]:
        """One token for each row, by its own key."""
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys, self.filtered(logits)).astype(jnp.int32)


class Decoding(NamedTuple):
    """Rows that are being written: all that the next step needs."""

    cache: Any
    logits: Float[Array, "B V"]
    """Of the next token."""
    done: Bool[Array, " B"]
    """Rows that have said the end."""


def prefill(network: Network, cache: Any, prompts: Int[Array, "B T"], lengths: Int[Array, " B"]) -> Decoding:
    """Reads prompts into an empty cache, all at once; row b has lengths[b] >= 1 tokens, and padding after them."""
    lengths = jnp.asarray(lengths, cache.length.dtype)
    logits, cache = network(prompts, cache=cache)
    last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return Decoding(cache._replace(length=lengths), last, jnp.zeros(len(prompts), bool))


def advance(
    network: Network, choose: Choose, keys: Key[Array, " B"], state: Decoding, *, steps: int, end: int | None = None
) -> tuple[Decoding, Int[Array, "B steps"]]:
    """The next `steps` tokens of each row. A row that has said `end` goes on saying it."""

    def step(state: Decoding, _):
        token = choose(state.logits, jax.vmap(jax.random.fold_in)(keys, state.cache.length))
        done = state.done
        if end is not None:
            token = jnp.where(done, end, token)
            done = token == end
        logits, cache = network(token[:, None], cache=state.cache)
        return Decoding(cache, logits[:, 0], done), token

    state, tokens = jax.lax.scan(step, state, length=steps)
    return state, tokens.T


_prefill = jax.jit(prefill, donate_argnames="cache")
_advance = jax.jit(advance, static_argnames=("choose", "steps", "end"), donate_argnames="state")


def generate(
    network: Network,
    choose: Choose,
    cache: Any,
    prompts: Int[np.ndarray, "B T"],
    lengths: Sequence[int] | Int[np.ndarray, " B"],
    keys: Key[Array, " B"],
    *,
    tokens: int,
    end: int | None = None,
    chunk: int = 32,
) -> Iterator[Int[np.ndarray, "B n"]]:
    """What follows prompts (padded at the right): at most `tokens` tokens for each row, `chunk` of them at a time.

    Stops when all rows have said `end`; a row that has goes on saying it meanwhile. `cache` is empty, holds prompts and
    tokens together, and is used up. `choose`, such as a `TokenSampler`, is hashable. Compiled once for each shape.

    Raises InputError where a prompt is empty, lengths do not fit the prompts, or `chunk` is below 1.
    """
    prompts, lengths = np.asarray(prompts, np.int32), np.asarray(lengths, np.int32)
    rows, most = prompts.shape
    if lengths.shape != (rows,) or lengths.min() < 1 or lengths.max() > most:
        raise InputError(f"lengths of prompts are {lengths.tolist()}; accepted are {rows} numbers from 1 to {most}.")
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; at least one token is made at a time.")
    state = _prefill(network, cache, prompts, lengths)
    for made in range(0, tokens, chunk):
        state, new = _advance(network, choose, keys, state, steps=chunk, end=end)
        yield np.asarray(new)[:, : tokens - made]
        if bool(state.done.all()):
            return
