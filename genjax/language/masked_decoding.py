r"""Decoding several places at once, more of them at each step.

**Tokens, the surest first**: MaskGIT (Chang et al. 2022, arXiv:2202.04200, section 3.2).

At step t = 0 .. T-1 a network that sees every place names each token that is masked, and one is drawn for each:

    confidence = log p(token) + tau (1 - (t + 1) / T) Gumbel noise          infinite where a token is known
    masked     = floor(N cos(pi / 2 (t + 1) / T)),    at least 1, and fewer than before

and as many of the least confident places are masked again. The last step's tokens are all kept. In training the share
of masked places is cos(pi u / 2) of u in [0, 1], rounded up: whole rows are masked too, as sampling begins.

The network is a callback `network(tokens (B,N)) -> logits (B,N,V)`, in which -1 stands for a masked place.

**Vectors, in any order**: MAR (Li et al. 2024, arXiv:2406.11838, section 3.4). A vector has no confidence: each row has
an order of its places, and as many are drawn at each step as the same schedule says, the last ones all. In training the
share of masked places is normal around 1 with a deviation of 0.25, between 0.7 and 1 (their code).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from genjax.errors import InputError

__all__ = ["MASKED", "cosine_share", "draw_masks", "high_share", "masked_counts", "reveal", "reveal_vectors"]

MASKED = -1
"""What stands for a token that is not known."""


def masked_counts(places: int, steps: int) -> Int[np.ndarray, " steps"]:
    """How many places are masked again after each step (after the last, none is: its tokens are kept).

    Raises InputError where there are more steps than places, or none.
    """
    if not 1 <= steps <= places:
        raise InputError(f"steps is a number of steps from 1 to {places}, the number of places, not {steps}")
    wanted = np.floor(places * np.cos(np.pi / 2 * np.arange(1, steps + 1) / steps)).astype(np.int32)
    counts, unknown = [], places
    for count in wanted:
        unknown = max(1, min(int(count), unknown - 1))
        counts.append(unknown)
    return np.array(counts, np.int32)


def cosine_share(key: Key[Array, ""]) -> Float[Array, ""]:
    """MaskGIT's share of masked places in training."""
    return jnp.cos(jnp.pi / 2 * jax.random.uniform(key))


def high_share(key: Key[Array, ""]) -> Float[Array, ""]:
    """MAR's share of masked places in training."""
    return 1 + 0.25 * jax.random.truncated_normal(key, -0.3 / 0.25, 0.0)


def draw_masks(
    keys: Key[Array, " B"], places: int, share: Callable[[Array], Array] = cosine_share
) -> Bool[Array, "B places"]:
    """Which places of each row are masked in training: as many as its share says, at least one, and any of them."""

    def one(key):
        share_key, place_key = jax.random.split(key)
        count = jnp.maximum(1, jnp.ceil(places * share(share_key)))
        return _ranks(jax.random.uniform(place_key, (places,))) < count

    return jax.vmap(one)(keys)


def reveal(
    network: Callable[[Int[Array, "B N"]], Float[Array, "B N V"]],
    choose: Callable[[Array, Array], Array],
    keys: Key[Array, " B"],
    places: int,
    *,
    steps: int,
    temperature: Float[Array, ""] | float = 4.5,
) -> Int[Array, "B N"]:
    """Tokens of B rows in `steps` evaluations of the network; `temperature` is tau, of the choice of places.

    `choose(logits (N,V), keys (N,)) -> tokens (N,)`, such as a `TokenSampler`, draws at each place. Row i depends on
    its key alone. Raises InputError as `masked_counts`.
    """
    counts = jnp.asarray(masked_counts(places, steps))

    def of_row(logits, known, row_key, count, t):
        token_key, place_key = jax.random.split(jax.random.fold_in(row_key, t))
        drawn = choose(logits, jax.vmap(jax.random.fold_in, (None, 0))(token_key, jnp.arange(places)))
        likely = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[:, None], axis=-1)[:, 0]
        noise = temperature * (1 - (t + 1) / steps) * jax.random.gumbel(place_key, (places,))
        tokens = jnp.where(known == MASKED, drawn, known)
        surest_last = _ranks(jnp.where(known == MASKED, likely + noise, jnp.inf))
        return tokens, jnp.where(surest_last < count, MASKED, tokens)

    def step(t, state):
        _, known = state
        return jax.vmap(of_row, (0, 0, 0, None, None))(network(known), known, keys, counts[t], t)

    fresh = jnp.full((len(keys), places), MASKED, jnp.int32)
    return jax.lax.fori_loop(0, steps, step, (fresh, fresh))[0]


def reveal_vectors(
    draw: Callable[[Array, Array, Array, Array, Array], Array],
    keys: Key[Array, " B"],
    places: int,
    width: int,
    *,
    steps: int,
) -> Float[Array, "B N D"]:
    """Vectors of B rows, N places of `width` numbers each, in `steps` steps; each row in an order of its own.

    `draw(known (B,N,D), hidden (B,N), which (B,M), share (), keys (B,)) -> (B,M,D)` gives the vectors of M places of
    each row; the share is that of the places which will be known after the step. What is known of a hidden place is 0.
    Row i depends on its key alone. Raises InputError as `masked_counts`.
    """
    after = np.append(masked_counts(places, steps)[:-1], 0)
    before = np.append(places, after[:-1])
    most = int((before - after).max())
    order_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    order = jax.vmap(jax.random.permutation, (0, None))(order_keys, places)
    rows = jnp.arange(len(keys))[:, None]

    def step(state, at):
        known, hidden = state
        t, before, after = at
        number = places - before + jnp.arange(most)
        which = order[:, jnp.minimum(number, places - 1)]
        share = 1 - after / places
        drawn = draw(known, hidden, which, share, jax.vmap(jax.random.fold_in, (0, None))(step_keys, t))
        taken = jnp.where(number < places - after, which, places)  # what comes later is dropped
        return (known.at[rows, taken].set(drawn, mode="drop"), hidden.at[rows, taken].set(False, mode="drop")), None

    fresh = jnp.zeros((len(keys), places, width)), jnp.ones((len(keys), places), bool)
    return jax.lax.scan(step, fresh, (jnp.arange(steps), jnp.asarray(before), jnp.asarray(after)))[0][0]


def _ranks(values: Float[Array, " N"]) -> Int[Array, " N"]:
    """The place of each in their order, from the smallest on; of equal ones the first comes first."""
    return jnp.argsort(jnp.argsort(values))
