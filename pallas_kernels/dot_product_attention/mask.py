r"""Which keys each query sees, as data that a kernel can test tile by tile.

A `Mask` is a conjunction: query i sees key j when every rule that is given allows it.

    band         position(j) - position(i) in [-left, right]     causal: right = 0; sliding window: left and right
    ranges       key_start[i] <= j < key_end[i]                  prefixes, lengths, blocks, frames: O(T) memory
    segments     query_segments[i] == key_segments[j] >= 0       packed documents; negative: padding
    tree         bit (j - tree_start) of ancestors[i]            drafts of a token tree, after a common prefix
    dense        dense[i, j]                                     anything else, at O(T S) memory

The position of a query or a key is its index, unless `query_positions` and `key_positions` are given. All arrays have a
leading batch axis, of size B or 1.
"""

import functools
from dataclasses import dataclass, field, fields

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

TREE_WORD = 32
"""Draft keys per word of `ancestors`."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        *("dense", "key_start", "key_end", "query_segments", "key_segments"),
        *("query_positions", "key_positions", "ancestors", "tree_start", "schedules"),
    ),
    meta_fields=("left", "right"),
)
@dataclass(frozen=True)
class Mask:
    """A conjunction of rules; a rule that is None allows everything. B may be 1 in each of them."""

    dense: Bool[Array, "B #N #T #S"] | None = None
    key_start: Int[Array, "B T"] | None = None
    """First key that each query may see."""
    key_end: Int[Array, "B T"] | None = None
    """One past the last key that each query may see."""
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    query_positions: Int[Array, "B T"] | None = None
    key_positions: Int[Array, "B S"] | None = None
    ancestors: UInt32[Array, "B T W"] | None = None
    """Bit b of word w of row i: query i sees the draft key tree_start + 32 w + b. Later keys are not seen."""
    tree_start: Int[Array, "B"] | None = None
    """Index of the first draft key; the keys before it are left to the other rules."""
    left: int | None = field(default=None, kw_only=True)
    """How many positions back a query sees; None: all."""
    right: int | None = field(default=None, kw_only=True)
    """How many positions ahead a query sees; None: all, 0: causal."""
    schedules: dict[str, Int[Array, "#B tiles 4"]] | None = field(default=None, kw_only=True)
    """What the kernels would compute from this mask in each call: see `scheduled`."""

    def __and__(self, other: "Mask") -> "Mask":
        """Both masks, without the schedules of either.

        Raises ValueError where both hold segments, positions or trees of their own.
        """
        join = dict(dense=jnp.logical_and, key_start=jnp.maximum, key_end=jnp.minimum, left=min, right=min)
        joined = {}
        for name in (*ARRAYS, "left", "right"):
            one, two = getattr(self, name), getattr(other, name)
            if one is not None and two is not None:
                if name not in join:
                    raise ValueError(f"two masks with {name} cannot be joined: give them in one of the two")
                one = join[name](one, two)
            joined[name] = two if one is None else one
        return Mask(**joined)

    @property
    def rules(self) -> frozenset[str]:
        """Names of the kinds of rule it holds, of: band, ranges, segments, positions, tree, dense."""
        held = {
            "band": (self.left, self.right),
            "ranges": (self.key_start, self.key_end),
            "segments": (self.query_segments,),
            "positions": (self.query_positions,),
            "tree": (self.ancestors,),
            "dense": (self.dense,),
        }
        return frozenset(name for name, parts in held.items() if any(part is not None for part in parts))

    def arrays(self) -> dict[str, jax.Array]:
        """The rules that are arrays and are given, by name."""
        named = {name: getattr(self, name) for name in ARRAYS}
        return {name: x for name, x in named.items() if x is not None}

    def seen(self, i: Int[Array, "R"], j: Int[Array, "C"]) -> Bool[Array, "#B #N #R #C"]:
        """Whether queries i see keys j, where the arrays of this mask hold just these rows and columns."""
        i, j = i[:, None], j[None, :]
        rules = [jnp.ones((1, 1, 1, 1), bool)]
        at = (j - i)[None]
        if self.query_positions is not None:
            at = self.key_positions[:, None, :] - self.query_positions[:, :, None]
        if self.left is not None:
            rules.append(at[:, None] >= -self.left)
        if self.right is not None:
            rules.append(at[:, None] <= self.right)
        if self.key_start is not None:
            rules.append(j >= self.key_start[:, None, :, None])
        if self.key_end is not None:
            rules.append(j < self.key_end[:, None, :, None])
        if self.query_segments is not None:
            query, key = self.query_segments[:, None, :, None], self.key_segments[:, None, None, :]
            rules.append((query == key) & (query >= 0))
        if self.ancestors is not None:
            batch, rows, words = self.ancestors.shape
            draft = j - self.tree_start[:, None]
            word = jnp.clip(draft // TREE_WORD, 0, words - 1)
            word = jnp.broadcast_to(word[:, None, :], (max(batch, len(word)), rows, word.shape[-1]))
            ancestors = jnp.broadcast_to(self.ancestors, (len(word), rows, words))
            bits = jnp.take_along_axis(ancestors, word, axis=2) >> (draft % TREE_WORD).astype(jnp.uint32)[:, None, :]
            is_ancestor = (bits & 1 == 1) & (draft < TREE_WORD * words)[:, None, :]
            rules.append(((draft < 0)[:, None, :] | is_ancestor)[:, None])
        if self.dense is not None:
            rules.append(self.dense)
        return functools.reduce(jnp.logical_and, rules)

    def to_dense(self, queries: int, keys: int) -> Bool[Array, "#B #N T S"]:
        """The whole mask as booleans: O(T S) memory, for tests and for what has no rules of its own."""
        seen = self.seen(jnp.arange(queries), jnp.arange(keys))
        return jnp.broadcast_to(seen, (*seen.shape[:2], queries, keys))

    def padding(self, queries: int, keys: int) -> tuple[Bool[Array, "#B T"] | None, Bool[Array, "#B S"] | None]:
        """The queries and the keys that take part; None: all do. What does not may hold anything, even NaN.

        A query or a key takes no part where a single rule hides it from everything: a negative segment, an empty range,
        a key outside the ranges of all queries or behind the tree, a row or a column of `dense` that is all false.
        """
        rows, columns = [], []
        j = jnp.arange(keys)[None, :]
        if self.key_start is not None:
            columns.append(j >= self.key_start.min(1, keepdims=True))
            rows.append(self.key_start < keys)
        if self.key_end is not None:
            columns.append(j < self.key_end.max(1, keepdims=True))
            rows.append(self.key_end > 0)
        if self.key_start is not None and self.key_end is not None:
            rows.append(self.key_start < self.key_end)
        if self.query_segments is not None:
            rows.append(self.query_segments >= 0)
            columns.append(self.key_segments >= 0)
        if self.ancestors is not None:
            columns.append(j < self.tree_start[:, None] + TREE_WORD * self.ancestors.shape[-1])
        if self.dense is not None:
            rows.append(jnp.broadcast_to(self.dense.any((1, 3)), (len(self.dense), queries)))
            columns.append(jnp.broadcast_to(self.dense.any((1, 2)), (len(self.dense), keys)))
        return tuple(functools.reduce(jnp.logical_and, found) if found else None for found in (rows, columns))


ARRAYS = tuple(f.name for f in fields(Mask) if f.name not in ("left", "right", "schedules"))
"""Names of the rules of a mask that are arrays."""


def prefix(lengths: Int[Array, "B"], queries: int) -> Mask:
    """Prefix-LM: everyone sees the first `lengths` keys, and after them each query sees up to itself."""
    i = jnp.arange(queries)[None, :]
    return Mask(key_end=jnp.maximum(jnp.asarray(lengths)[:, None], i + 1))


def blocks(size: int, queries: int, *, memory: int | None = None) -> Mask:
    """Block-causal: each query sees its own block of `size` tokens and all earlier ones (or only `memory` of them).

    With one block per frame this is the frame-causal mask of autoregressive video and of diffusion forcing.
    """
    block = jnp.arange(queries)[None, :] // size
    start = None if memory is None else jnp.maximum(block - memory, 0) * size
    return Mask(key_start=start, key_end=(block + 1) * size)


def tree(parents: np.ndarray, prefix_length: Int[Array, "B"] | int) -> Mask:
    """Draft tokens that are nodes of a tree: each sees the common prefix, its ancestors and itself.

    `parents[i]` is the index of the parent of node i, below i, or -1 for a root. The draft keys lie from
    `prefix_length` on, in the order of the nodes.
    """
    parents = np.asarray(parents)
    count = len(parents)
    words = np.zeros((count, -(-count // TREE_WORD)), np.uint32)
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(f"parents[{node}] is {parent}: accepted are -1 (a root) to {node - 1}, a node before it")
        if parent >= 0:
            words[node] = words[parent]
        words[node, node // TREE_WORD] |= np.uint32(1 << node % TREE_WORD)
    start = jnp.atleast_1d(jnp.asarray(prefix_length, jnp.int32))
    return Mask(ancestors=jnp.asarray(words)[None], tree_start=start)
