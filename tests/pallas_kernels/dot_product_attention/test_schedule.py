"""The intervals of tiles hold every pair that the mask shows, and where they say that a tile is full, it is."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.dot_product_attention.mask import Mask, blocks, tree
from pallas_kernels.dot_product_attention.schedule import schedule, schedule_keys


@st.composite
def masks(draw):
    """(a random conjunction of rules, queries, keys, block); each of few shapes is compiled for."""
    queries, keys, batch, block = draw(st.sampled_from([(23, 37, 2, (5, 7)), (16, 16, 1, (4, 4)), (1, 19, 2, (4, 4))]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chosen = draw(st.sets(st.sampled_from(["left", "right", "start", "end", "segments", "positions", "tree", "dense"])))
    row = lambda low, high, length: jnp.asarray(rng.integers(low, high, (batch, length)), jnp.int32)  # noqa: E731
    rules = {}
    if "left" in chosen:
        rules["left"] = draw(st.integers(-3, 20))
    if "right" in chosen:
        rules["right"] = draw(st.integers(-3, 20))
    if "start" in chosen:
        rules["key_start"] = row(0, keys, queries)
    if "end" in chosen:
        rules["key_end"] = row(0, keys + 1, queries)
    if "segments" in chosen:
        rules["query_segments"] = jnp.sort(row(-1, 3, queries), axis=1)
        rules["key_segments"] = jnp.sort(row(-1, 3, keys), axis=1)
    if "positions" in chosen:
        rules["query_positions"], rules["key_positions"] = row(0, 30, queries), row(0, 30, keys)
    if "tree" in chosen:
        parents = np.asarray([rng.integers(-1, node) if node else -1 for node in range(queries)])
        drafts = tree(parents, rng.integers(0, keys, batch))
        rules["ancestors"], rules["tree_start"] = drafts.ancestors, drafts.tree_start
    if "dense" in chosen:
        rules["dense"] = jnp.asarray(rng.random((batch, 1, queries, keys)) < 0.3)
    return Mask(**rules), queries, keys, block


def by_tile(seen, block_q, block_k, outside):
    """(B,T,S) as (B, query tiles, key tiles, block_q, block_k), padded with `outside`."""
    batch, queries, keys = seen.shape
    seen = np.pad(seen, ((0, 0), (0, -queries % block_q), (0, -keys % block_k)), constant_values=outside)
    return seen.reshape(batch, -(-queries // block_q), block_q, -(-keys // block_k), block_k).swapaxes(2, 3)


def inside(low, high, count):
    at = np.arange(count)
    return (at >= np.asarray(low)[..., None]) & (at < np.asarray(high)[..., None])


@settings(max_examples=60, deadline=None)
@given(masks())
def test_intervals_cover_what_is_seen_and_full_tiles_are_full(problem):
    mask, queries, keys, block = problem
    seen = np.asarray(mask.to_dense(queries, keys)).any(1)
    some = by_tile(seen, *block, False).any((3, 4))
    every = {
        schedule: by_tile(np.pad(seen, ((0, 0), (0, 0), (0, -keys % block[1]))), *block, True).all((3, 4)),
        schedule_keys: by_tile(np.pad(seen, ((0, 0), (0, -queries % block[0]), (0, 0))), *block, True).all((3, 4)),
    }
    for make, full in every.items():
        plan = make(mask, queries, keys, *block)
        some_, full = (some, full) if make is schedule else (some.swapaxes(1, 2), full.swapaxes(1, 2))
        low, high, full_low, full_high = (np.asarray(x) for x in (plan.low, plan.high, plan.full_low, plan.full_high))
        assert ((low >= 0) & (low <= full_low) & (full_low <= full_high) & (full_high <= high)).all()
        assert (high <= some_.shape[-1]).all()
        visited = inside(low, high, some_.shape[-1])
        assert not (some_ & ~visited).any()
        assert not (inside(full_low, full_high, some_.shape[-1]) & ~full).any()


DOCUMENTS = jnp.repeat(jnp.arange(4), 16)[None]
TIGHT = {
    "causal": Mask(right=0),
    "window": Mask(left=11, right=0),
    "ranges": blocks(8, 64, memory=2),
    "documents": Mask(query_segments=DOCUMENTS, key_segments=DOCUMENTS),
    "causal documents": Mask(query_segments=DOCUMENTS, key_segments=DOCUMENTS, right=0),
}


@pytest.mark.parametrize("name", TIGHT)
def test_nothing_is_visited_in_vain_and_no_full_tile_is_tested_for_the_usual_masks(name):
    seen = by_tile(np.asarray(TIGHT[name].to_dense(64, 64))[:, 0], 8, 8, False)
    some, every = seen.any((3, 4)), seen.all((3, 4))
    plan = schedule(TIGHT[name], 64, 64, 8, 8)
    np.testing.assert_array_equal(inside(plan.low, plan.high, 8), some)
    np.testing.assert_array_equal(inside(plan.full_low, plan.full_high, 8), every)
    plan = schedule_keys(TIGHT[name], 64, 64, 8, 8)
    np.testing.assert_array_equal(inside(plan.low, plan.high, 8), some.swapaxes(1, 2))
    np.testing.assert_array_equal(inside(plan.full_low, plan.full_high, 8), every.swapaxes(1, 2))


@pytest.mark.parametrize("block_k", [3, 4])
def test_every_band_visits_exactly_the_tiles_it_shows(block_k):
    for left, right in itertools.product(range(7), repeat=2):
        mask = Mask(left=left, right=right)
        seen = np.asarray(mask.to_dense(12, 12))[0, 0].reshape(3, 4, 12 // block_k, block_k).any((1, 3))
        found = schedule(mask, 12, 12, 4, block_k)
        np.testing.assert_array_equal(found.low[0], seen.argmax(1))
        np.testing.assert_array_equal(found.high[0], seen.shape[1] - seen[:, ::-1].argmax(1))
