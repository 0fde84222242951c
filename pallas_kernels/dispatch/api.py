"""The one function: exact dot-product attention on every machine, in the layout of `jax.nn.dot_product_attention`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.dispatch import capabilities
from pallas_kernels.dispatch.implementations import TILINGS, fused
from pallas_kernels.dot_product_attention import problem, schedule
from pallas_kernels.dot_product_attention.mask import Mask

Pair = tuple[Int[Array, "B T"], Int[Array, "B S"]]


def attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    bias: Float[Array, "*#B #N #T #S"] | None = None,
    mask: Mask | Bool[Array, "*#B #N #T #S"] | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "B"] | None = None,
    key_value_seq_lengths: Int[Array, "B"] | None = None,
    local_window_size: int | tuple[int | None, int | None] | None = None,
    segment_ids: Int[Array, "B T"] | Pair | None = None,
    positions: Int[Array, "B T"] | Pair | None = None,
    logits_soft_cap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    return_residual: bool = False,
    implementation: str | Sequence[str] | None = None,
) -> Float[Array, "*B T N V"] | tuple[Float[Array, "*B T N V"], Float[Array, "*B T N"]]:
    r"""softmax(soft_cap(scale q k^T) + bias) v over the keys that each query sees, with every derivative.

    A superset of `jax.nn.dot_product_attention`; the batch axis may be left out. Never holds a T x S matrix of its own.

    Args:
        query: N heads of width H. key, value: K heads, K divides N (1: multi-query). V may differ from H.
        bias: added to the logits after the soft cap; any axis may have size 1. Its gradient is exact.
        mask: a `Mask` (ranges, trees, ...), or booleans (True: seen), of which any axis may have size 1.
        scale: of the products; 1 / sqrt(H) when None.
        is_causal: query i sees keys up to its own index, or its own position when `positions` are given.
        query_seq_lengths: queries from here on are padding. key_value_seq_lengths: keys from here on are padding.
        local_window_size: how far a query sees to the left and to the right; None in a pair: without end.
        segment_ids: (of queries, of keys), or one array for both: queries see keys of their own segment, and what is
            negative is padding. It packs documents into one row.
        positions: (of queries, of keys), or one array for both, for `is_causal` and `local_window_size`.
        logits_soft_cap: c tanh(logits / c) takes the place of the logits (Gemma 2, arXiv:2408.00118, section 2).
        sinks: one logit per head that takes weight and gives no value (gpt-oss; StreamingLLM, arXiv:2309.17453).
        return_residual: also return the log-sum-exp of each row, natural logarithm, float32, differentiable too.
        implementation: 'xla', 'cudnn', 'triton', 'mosaic', or several to try in order; None: the fastest of them for
            this machine that can do exactly this and has been tried on such a machine (see docs/kernels.md).

    Returns:
        The output in the dtype of the query; a query that sees no key gets 0, log-sum-exp -inf and gradients 0.

    Raises:
        ValueError: a shape or dtype that does not fit. NotImplementedError: no implementation that was asked for can do
            this; it names each one, the feature, and what would support it.
    """
    lead = query.shape[:-3]
    if len(lead) > 1:
        raise ValueError(f"query has shape {query.shape}: accepted are (B, T, N, H) and (T, N, H)")
    operands = {"query": query, "key": key, "value": value}
    operands = {name: _ranked(name, jnp.asarray(x), query.ndim) for name, x in operands.items()}
    _check_heads(**operands)
    batch, queries, heads, width = operands["query"].shape
    keys = operands["key"].shape[1]
    if bias is not None:
        operands["bias"] = _pairs("bias", jnp.asarray(bias), batch, heads, queries, keys)
    if sinks is not None:
        operands["sinks"] = _shaped("sinks", jnp.asarray(sinks), (heads,))[None]

    rules = mask if isinstance(mask, Mask) else Mask()
    if mask is not None and not isinstance(mask, Mask):
        if jnp.asarray(mask).dtype != bool:
            raise ValueError(f"mask has dtype {jnp.asarray(mask).dtype}: accepted are bool (True: seen) and Mask")
        rules &= Mask(dense=_pairs("mask", jnp.asarray(mask), batch, heads, queries, keys))
    if is_causal:
        rules &= Mask(right=0)
    if local_window_size is not None:
        one = isinstance(local_window_size, int)
        left, right = (local_window_size, local_window_size) if one else local_window_size
        rules &= Mask(left=left, right=right)
    if query_seq_lengths is not None:
        lengths = _shaped("query_seq_lengths", jnp.asarray(query_seq_lengths), (batch,))
        rules &= Mask(key_end=jnp.where(jnp.arange(queries) < lengths[:, None], keys, 0))
    if key_value_seq_lengths is not None:
        lengths = _shaped("key_value_seq_lengths", jnp.asarray(key_value_seq_lengths), (batch,))
        rules &= Mask(key_end=jnp.broadcast_to(lengths[:, None], (batch, queries)))
    if segment_ids is not None:
        one, two = _of_both("segment_ids", segment_ids, batch, queries, keys)
        rules &= Mask(query_segments=one, key_segments=two)
    if positions is not None:
        one, two = _of_both("positions", positions, batch, queries, keys)
        rules &= Mask(query_positions=one, key_positions=two)
    operands |= _checked(rules, batch, heads, queries, keys) | (rules.schedules or {})

    settings = problem.Settings(
        scale=float(width**-0.5 if scale is None else scale),
        soft_cap=None if logits_soft_cap is None else float(logits_soft_cap),
        left=rules.left,
        right=rules.right,
    )
    chosen = capabilities.choose(implementation, operands, settings, return_residual=return_residual)
    query_used, key_used = (None if x is None else x[..., None, None] for x in rules.padding(queries, keys))
    for name, used in (("query", query_used), ("key", key_used), ("value", key_used)):
        if used is not None:  # 0 times what padding holds is not always 0
            operands[name] = jnp.where(used, operands[name], 0)
    out, residual = fused(operands, settings, chosen)
    if query_used is not None:
        out = jnp.where(query_used, out, 0)
    if not lead:
        out, residual = out[0], residual[0]
    return (out, residual) if return_residual else out


def scheduled(
    mask: Mask,
    query: Float[Array, "B T N H"] | jax.ShapeDtypeStruct,
    key: Float[Array, "B S K H"] | jax.ShapeDtypeStruct,
    value: Float[Array, "B S K V"] | jax.ShapeDtypeStruct,
    bias: Float[Array, "#B #N #T #S"] | jax.ShapeDtypeStruct | None = None,
    *,
    implementation: str | Sequence[str] | None = None,
) -> Mask:
    """The mask with what kernels compute from it before they start, so that all layers of a network can share it.

    Without this every call of `attention` finds out for itself which tiles of logits its mask leaves empty. Of the
    other arguments only shapes and dtypes matter. The mask must hold all rules, the causal one too (`right=0`): joined
    with others it loses its schedules, and so it does, silently and correctly, in a call of other shapes or of another
    implementation. Do not change the arrays of a mask that has schedules.

    Raises:
        ValueError: a shape that does not fit. NotImplementedError: no implementation that was asked for can do this.
    """
    _check_heads(query, key, value)
    (batch, queries, heads, _), keys = query.shape, key.shape[1]
    operands = {"query": query, "key": key, "value": value} | ({} if bias is None else {"bias": bias})
    operands |= _checked(mask, batch, heads, queries, keys)
    settings = problem.Settings(scale=1.0, left=mask.left, right=mask.right)
    chosen = capabilities.choose(implementation, operands, settings)
    tilings = set().union(*(find(operands, settings) for find in TILINGS[chosen]))
    return schedule.attach(mask, queries, keys, sorted(tilings))


def _ranked(name: str, x: jax.Array, ndim: int) -> jax.Array:
    if x.ndim != ndim or ndim not in (3, 4):
        raise ValueError(f"{name} has shape {x.shape}: query, key and value are all (B, T, N, H) or all (T, N, H)")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {x.dtype}: accepted are floating-point numbers")
    return x if ndim == 4 else x[None]


def _check_heads(query, key, value) -> None:
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key has shape {key.shape} and value {value.shape}: all but their widths must be equal")
    if query.shape[0] != key.shape[0]:
        raise ValueError(f"query has shape {query.shape} and key {key.shape}: their batch sizes must be equal")
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"query has shape {query.shape} and key {key.shape}: their widths must be equal")
    if key.shape[2] == 0 or query.shape[2] % key.shape[2]:
        raise ValueError(f"{query.shape[2]} query heads are no multiple of {key.shape[2]} key heads")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key, value have dtypes {query.dtype}, {key.dtype}, {value.dtype}: they must be equal")


def _shaped(name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if x.shape != shape:
        raise ValueError(f"{name} has shape {x.shape}: accepted is {shape}")
    return x


def _pairs(name: str, x: jax.Array, *full: int) -> jax.Array:
    """x with four axes, each of the full size or 1."""
    shape = (1,) * (4 - x.ndim) + x.shape
    if len(shape) != 4 or any(size not in (1, whole) for size, whole in zip(shape, full, strict=True)):
        raise ValueError(f"{name} has shape {x.shape}: accepted is {full}, where each axis may have size 1")
    return x.reshape(shape)


def _of_both(name: str, given, batch: int, queries: int, keys: int) -> tuple[jax.Array, jax.Array]:
    pair = given if isinstance(given, tuple) else (given, given)
    if len(pair) != 2:
        raise ValueError(f"{name} has {len(pair)} parts: accepted are one array, or one for queries and one for keys")
    found = []
    for x, of, length in zip(map(jnp.asarray, pair), ("queries", "keys"), (queries, keys), strict=True):
        x = x[None] if x.ndim == 1 else x
        if x.ndim != 2 or x.shape[0] not in (1, batch) or x.shape[1] != length:
            raise ValueError(f"{name} of {of} has shape {x.shape}: accepted is {(batch, length)}")
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"{name} of {of} has dtype {x.dtype}: accepted are integers")
        found.append(x.astype(jnp.int32))
    return tuple(found)


def _checked(rules: Mask, batch: int, heads: int, queries: int, keys: int) -> dict[str, jax.Array]:
    """The arrays of a mask, whose shapes have been checked."""
    for one, two in (
        ("query_segments", "key_segments"),
        ("query_positions", "key_positions"),
        ("ancestors", "tree_start"),
    ):
        if (getattr(rules, one) is None) != (getattr(rules, two) is None):
            raise ValueError(f"a mask needs {one} and {two} together")
    lengths = {
        **dict.fromkeys(("key_start", "key_end", "query_segments", "query_positions", "ancestors"), queries),
        **dict.fromkeys(("key_segments", "key_positions"), keys),
    }
    found = {}
    for name, x in rules.arrays().items():
        x = jnp.asarray(x)
        if name == "dense":
            x = _pairs("mask.dense", x, batch, heads, queries, keys)
        elif x.shape[0] not in (1, batch) or (name in lengths and x.shape[1] != lengths[name]):
            raise ValueError(
                f"mask.{name} has shape {x.shape}: accepted is {(batch, lengths.get(name, ''))}, or batch 1"
            )
        found[name] = x if name in ("dense", "ancestors") else x.astype(jnp.int32)
    return found
