r"""The arithmetic of one tile of logits, for the kernels and for their executable specification alike.

Plain functions of arrays that Mosaic compiles and that JAX runs on a CPU. With x = q k^T, the logits in log2 units are

    s = c y,  y = x, c = scale log2(e);         under a soft cap  y = tanh(scale x / cap), c = cap log2(e)

    forward   m' = max(m, max_j s),  p = 2^{s - m'},  a = 2^{m - m'},  l' = a l + sum_j p,  acc' = a acc + p v
    backward  p = 2^{s - lse2},  ds = p (dout v^T - delta),  dx = ds,  under a soft cap ds (1 - y^2)
              dq = scale dx k,  dk = scale dx^T q,  dv = p^T dout

where lse2 = lse log2(e) and delta = sum(dout out) - dlse. `axis` is the axis of a tile that runs over queries: 0 in
forward and dq, 1 in dkv, whose tiles are transposed.
"""

import functools
import math
import operator

import jax.numpy as jnp
from jax import lax

from pallas_kernels.dot_product_attention.problem import Settings

LOG2E = math.log2(math.e)
NOTHING = float("-inf")
ROWS = ("key_start", "key_end", "query_segments")
"""Arrays of a mask with an entry for each query."""
COLUMNS = ("key_segments",)
"""Arrays of a mask with an entry for each key."""


def boundary(bounds):
    """How many blocks have to test the mask; `bounds` are low, high, full_low, full_high of a schedule."""
    low, high, full_low, full_high = bounds
    return (full_low - low) + (high - full_high)


def visit(step, bounds):
    """The block to visit in step `step` of high - low: first the boundary blocks, where the mask is tested."""
    low, _, full_low, full_high = bounds
    before, tested = full_low - low, boundary(bounds)
    full = full_low + (step - tested)
    return jnp.where(step < before, low + step, jnp.where(step < tested, full_high + (step - before), full))


def along(vector, shape, axis: int):
    """A vector over one axis of a tile, as a tile."""
    return lax.broadcast_in_dim(vector, shape, [axis])


def seen(j, arrays: dict, keys: int | None):
    """Which pairs are seen: j, the index of the key, and the arrays of the mask all have the shape of the tile.

    `keys` is the number of keys where a tile may reach beyond the last one, else None.
    """
    tests = []
    if keys is not None:
        tests.append(j < keys)
    if "key_start" in arrays:
        tests.append(j >= arrays["key_start"])
    if "key_end" in arrays:
        tests.append(j < arrays["key_end"])
    if "query_segments" in arrays:
        tests += [arrays["query_segments"] == arrays["key_segments"], arrays["query_segments"] >= 0]
    return functools.reduce(operator.and_, tests, True)


def logits(x, settings: Settings):
    """(y, c) of products x: the logits are c y in units of log2."""
    if settings.soft_cap is None:
        return x, settings.scale * LOG2E
    return tanh(x * (settings.scale / settings.soft_cap)), settings.soft_cap * LOG2E


def tanh(x):
    """By exp2, which the hardware has: its own tanh is good to 11 bits only."""
    return 1.0 - 2.0 / (jnp.exp2(x * (2.0 * LOG2E)) + 1.0)


def hide(y, visible):
    """y of a tile, -inf where a pair is not seen."""
    return jnp.where(visible, y, NOTHING)


def online_softmax(y, c: float, m):
    """(p, a, m') of a tile, given the maximum m so far of each row; no NaN where a row has seen nothing yet."""
    top = jnp.maximum(m, y.max(axis=1) * c)
    shift = jnp.where(top == NOTHING, 0.0, top)
    return jnp.exp2(y * c - along(shift, y.shape, 0)), jnp.exp2(m - shift), top


def normalised(total, m):
    """(1 / l, lse) of rows with the sum l = `total`; 0 and -inf where a row saw no key."""
    return jnp.where(total > 0.0, 1.0 / total, 0.0), m * (1.0 / LOG2E) + jnp.log(total)


def probabilities(y, c: float, lse2, axis: int):
    """p of a tile, given lse2 of each query."""
    return jnp.exp2(y * c - along(lse2, y.shape, axis))


def product_cotangent(p, y, dp, delta, settings: Settings, axis: int):
    """The cotangent of the products, short of the factor `scale`; y of all pairs, seen or not."""
    dx = p * (dp - along(delta, p.shape, axis))
    return dx if settings.soft_cap is None else dx * (1.0 - y * y)
