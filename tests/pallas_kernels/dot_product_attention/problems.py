"""Random problems of attention, and what it takes to hold an implementation to its definition in float64.

A problem is a set of features: each adds its arrays to the operands, or its numbers to the settings. `compare` holds
the value, the tangents and the gradients of any implementation to the definition, for any problem.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from pallas_kernels.dispatch import capabilities
from pallas_kernels.dot_product_attention import dense, problem
from pallas_kernels.dot_product_attention.mask import tree

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""For programs that run once: most of the time of such a test is the compiler's."""


def bias(rng, operands, shape):
    """Any axis of a bias may be shared."""
    sizes = [size if rng.random() < 0.6 else 1 for size in (shape["B"], shape["N"], shape["T"], shape["S"])]
    operands["bias"] = rng.normal(size=sizes)


def dense_mask(rng, operands, shape):
    sizes = [size if rng.random() < 0.6 else 1 for size in (shape["B"], shape["N"], shape["T"], shape["S"])]
    operands["dense"] = rng.random(sizes) < 0.7


def sinks(rng, operands, shape):
    operands["sinks"] = rng.normal(size=(1, shape["N"]))


def soft_cap(rng, operands, shape):
    return {"soft_cap": float(rng.uniform(0.5, 5.0))}


def causal(rng, operands, shape):
    return {"right": 0}


def window(rng, operands, shape):
    reach = max(12, shape["S"] // 3)
    return {"left": int(rng.integers(0, reach)), "right": int(rng.integers(0, reach))}


def ranges(rng, operands, shape):
    start = rng.integers(0, shape["S"], size=(shape["B"], shape["T"]))
    operands["key_start"] = start
    operands["key_end"] = start + rng.integers(0, shape["S"], size=start.shape)


def documents(rng, length):
    """Segment ids of documents one after the other, with padding (-1) at the end."""
    padding = rng.integers(1, 2 + length // 8)
    return np.where(np.arange(length) < length - padding, np.sort(rng.integers(0, 4, size=length)), -1)


def segments(rng, operands, shape):
    operands["query_segments"] = np.stack([documents(rng, shape["T"]) for _ in range(shape["B"])])
    operands["key_segments"] = np.stack([documents(rng, shape["S"]) for _ in range(shape["B"])])


def positions(rng, operands, shape):
    operands["query_positions"] = rng.integers(0, 20, size=(1, shape["T"]))
    operands["key_positions"] = rng.integers(0, 20, size=(1, shape["S"]))


def token_tree(rng, operands, shape):
    parents = [int(rng.integers(-1, node)) if node else -1 for node in range(shape["T"])]
    mask = tree(np.array(parents), int(rng.integers(0, shape["S"])))
    operands |= {name: np.asarray(x) for name, x in mask.arrays().items()}


def grouped(rng, operands, shape):
    """Three query heads for each key head (see `draw`)."""


def value_width(rng, operands, shape):
    """Values wider than keys (see `draw`)."""


FEATURES = [
    bias,
    dense_mask,
    sinks,
    soft_cap,
    causal,
    window,
    ranges,
    segments,
    positions,
    token_tree,
    grouped,
    value_width,
]
MIXED = [
    *(bias, causal, sinks, window, soft_cap, ranges),
    *(grouped, segments, value_width, positions, dense_mask, token_tree),
]
"""The same with rules of the mask and others in turns: sets of neighbours then hide no more than they have to."""


def granted(implementation: str, features: list[Callable]) -> list[Callable]:
    """Those of the features that the table of capabilities grants to an implementation."""

    def request(feature):
        operands, setting = draw([feature], B=1, T=8, S=8, K=1, H=64, seed=0)
        return capabilities.Request(cast(operands, jnp.bfloat16), setting)

    return [feature for feature in features if capabilities.refusal(implementation, request(feature)) is None]


def pairs(features: list[Callable]) -> list[tuple[Callable, Callable]]:
    """All pairs of features, each feature with itself too."""
    return list(itertools.combinations_with_replacement(features, 2))


def cover(features: list[Callable], size: int = 4) -> list[tuple[Callable, ...]]:
    """Few sets of at most `size` features, such that every pair is together in one of them.

    A covering array of strength 2, made greedily: each set begins with a pair that is not covered yet, and takes the
    feature that covers the most new pairs with those it holds.
    """
    missing = [frozenset(pair) for pair in itertools.combinations(features, 2)]
    sets = []
    while missing:
        chosen = [feature for feature in features if feature in missing[0]]
        while len(chosen) < min(size, len(features)):
            others = [feature for feature in features if feature not in chosen]
            chosen.append(max(others, key=lambda f: sum(frozenset((f, held)) in missing for held in chosen)))
        covered = {frozenset(pair) for pair in itertools.combinations(chosen, 2)}
        missing = [pair for pair in missing if pair not in covered]
        sets.append(tuple(chosen))
    return sets


def name_of(pair) -> str:
    return "+".join(dict.fromkeys(feature.__name__ for feature in pair))


def draw(features, B, T, S, K, H, seed) -> tuple[dict, problem.Settings]:
    """Operands in float64, and settings."""
    rng = np.random.default_rng(seed)
    group = 3 if grouped in features else 1
    shape = {"B": B, "T": T, "S": S, "N": K * group}
    operands = {
        "query": rng.normal(size=(B, T, K * group, H)),
        "key": rng.normal(size=(B, S, K, H)),
        "value": rng.normal(size=(B, S, K, H + 3 if value_width in features else H)),
    }
    numbers = {"scale": H**-0.5}
    for feature in dict.fromkeys(features):
        numbers |= feature(rng, operands, shape) or {}
    if causal in features and window in features:
        numbers["right"] = 0
    integers = ("key_start", "key_end", "query_segments", "key_segments", "query_positions", "key_positions")
    operands = {name: x.astype(np.int32) if name in integers else x for name, x in operands.items()}
    return operands, problem.Settings(**numbers)


def shapes(B=(2, 3), T=(19, 40), S=(21, 40), K=(2, 3), H=(7, 4, 16, 1)) -> st.SearchStrategy[dict]:
    """Shapes for `draw`: lengths and counts in these ranges, or below them. The first example is the least in them."""

    def around(least, greatest):
        return st.integers(least, greatest) | st.integers(1, least - 1)

    sizes = {"B": around(*B), "T": around(*T), "S": around(*S), "K": around(*K), "H": st.sampled_from(H)}
    return st.fixed_dictionaries({**sizes, "seed": st.integers(1, 2**16)})


def cast(operands, dtype) -> dict[str, jax.Array]:
    """Floating-point operands in `dtype`; bias and sinks stay in float32 when it is narrower."""
    wide = jnp.promote_types(dtype, jnp.float32)
    to = {name: wide if name in ("bias", "sinks") else dtype for name in problem.DIFFERENTIABLE}
    return {name: jnp.asarray(x, to.get(name)) for name, x in operands.items()}


def everything(attend, operands, moved, cotangents):
    """out and lse, their tangents, and the cotangents of every differentiable operand."""
    floats = {name: operands[name] for name in problem.DIFFERENTIABLE if name in operands}

    def finite(floats):  # lse = -inf stands for a row that sees nothing; no loss is made of it
        out, lse = attend({**operands, **floats})
        return {"out": out, "lse": jnp.where(lse == -jnp.inf, -1e3, lse)}

    outputs, tangents = jax.jvp(finite, (floats,), (moved,))
    gradients = jax.vjp(finite, floats)[1](cotangents)[0]
    return {**outputs, **{f"t{n}": x for n, x in tangents.items()}, **{f"d{n}": x for n, x in gradients.items()}}


def directions(operands, dims):
    """Tangents of the operands and cotangents of the outputs."""
    rng = np.random.default_rng(0)
    moved = {name: rng.normal(size=operands[name].shape) for name in problem.DIFFERENTIABLE if name in operands}
    return moved, {name: rng.normal(size=shape.shape) for name, shape in dims.items()}


def compare(implementation, operands, setting, dtype, tolerance):
    """Value, tangents and gradients of implementation(operands, setting) in `dtype` against the definition in float64.

    The tolerance is relative to the greatest entry of each array, or to 1 if that is less.
    """
    with jax.enable_x64(True):
        operands = {name: np.asarray(cast({name: x}, dtype)[name]) for name, x in operands.items()}  # as rounded
        exact = cast(
            {name: np.asarray(x, np.float64) if name in problem.DIFFERENTIABLE else x for name, x in operands.items()},
            np.float64,
        )
        attend = functools.partial(dense.attend, settings=setting)
        out, lse = jax.eval_shape(attend, exact)
        moved, cotangents = directions(exact, {"out": out, "lse": lse})
        expected = compiled(functools.partial(everything, attend))(exact, moved, cotangents)
        expected = {name: np.asarray(x) for name, x in expected.items()}
    low = {name: jnp.asarray(x) for name, x in operands.items()}
    found = compiled(functools.partial(everything, lambda x: implementation(x, setting)))(
        low,
        {name: jnp.asarray(x, low[name].dtype) for name, x in moved.items()},
        {"out": jnp.asarray(cotangents["out"], dtype), "lse": jnp.asarray(cotangents["lse"], jnp.float32)},
    )
    for name, x in expected.items():
        size = np.abs(x, where=x != -1e3, out=np.zeros_like(x)).max(initial=1.0)
        np.testing.assert_allclose(np.asarray(found[name], np.float64), x, rtol=0, atol=tolerance * size, err_msg=name)
