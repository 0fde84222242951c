"""One suite of laws for every implementation of attention, and for every pair of features.

The forms in plain JAX run here, with tiles so small that every loop turns several times. Kernels that can be
interpreted, and the specifications of those that cannot, are held to the same definition in the tests of their rooms.
"""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pallas_kernels.derivatives import Fused, Rules
from pallas_kernels.dot_product_attention import dense, problem, xla
from pallas_kernels.dot_product_attention.mask import tree


def tiled(**options) -> Rules:
    """The rules in plain JAX with fixed tiles."""
    tiles = xla.Tiles(**options)
    return Rules(
        lambda operands, setting: xla.forward(operands, setting, tiles),
        lambda *arguments: xla.tangent(*arguments, tiles),
        lambda *arguments: xla.backward(*arguments, tiles),
    )


FORMS = {
    "xla by head": tiled(rows=16, columns=8, by_head=True),
    "xla batched": tiled(rows=8, columns=16, by_head=False),
}
FUSED = Fused("attention_in_tests", FORMS, second_order=xla.SECOND_ORDER, shapes=problem.shapes)


# Problems: every feature adds its arrays to the operands, its numbers to the settings.


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
    return {"left": int(rng.integers(0, 12)), "right": int(rng.integers(0, 12))}


def ranges(rng, operands, shape):
    start = rng.integers(0, shape["S"], size=(shape["B"], shape["T"]))
    operands["key_start"] = start
    operands["key_end"] = start + rng.integers(0, shape["S"], size=start.shape)


def documents(rng, length):
    """Segment ids of documents one after the other, with padding (-1) at the end."""
    return np.sort(rng.integers(0, 4, size=length)) * 1 - 4 * (np.arange(length) >= length - rng.integers(0, 3))


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
PAIRS = list(itertools.combinations_with_replacement(FEATURES, 2))


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


shapes = st.fixed_dictionaries(
    {
        "B": st.integers(2, 3) | st.just(1),
        "T": st.integers(19, 40) | st.integers(1, 18),  # the first example is the least of the first
        "S": st.integers(21, 40) | st.integers(1, 20),
        "K": st.integers(2, 3) | st.just(1),
        "H": st.sampled_from([7, 4, 16, 1]),
        "seed": st.integers(1, 2**16),
    }
)


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


def directions(operands, dims, seed):
    rng = np.random.default_rng(seed)
    moved = {name: rng.normal(size=operands[name].shape) for name in problem.DIFFERENTIABLE if name in operands}
    return moved, {name: rng.normal(size=shape.shape) for name, shape in dims.items()}


def compare(form, operands, setting, dtype, tolerance):
    """Value, tangents and gradients of a form in `dtype` against the definition in float64."""
    with jax.enable_x64(True):
        operands = {name: np.asarray(cast({name: x}, dtype)[name]) for name, x in operands.items()}  # as rounded
        exact = cast(
            {name: np.asarray(x, np.float64) if name in problem.DIFFERENTIABLE else x for name, x in operands.items()},
            np.float64,
        )
        out, lse = jax.eval_shape(functools.partial(dense.attend, settings=setting), exact)
        moved, cotangents = directions(exact, {"out": out, "lse": lse}, zlib.crc32(form.encode()))
        attend = functools.partial(dense.attend, settings=setting)
        expected = jax.jit(functools.partial(everything, attend))(exact, moved, cotangents)
        expected = {name: np.asarray(x) for name, x in expected.items()}
    low = {name: jnp.asarray(x) for name, x in operands.items()}
    found = jax.jit(functools.partial(everything, lambda x: FUSED(x, setting, form)))(
        low,
        {name: jnp.asarray(x, low[name].dtype) for name, x in moved.items()},
        {"out": jnp.asarray(cotangents["out"], dtype), "lse": jnp.asarray(cotangents["lse"], jnp.float32)},
    )
    for name, x in expected.items():
        size = np.abs(x, where=x != -1e3, out=np.zeros_like(x)).max(initial=1.0)
        np.testing.assert_allclose(np.asarray(found[name], np.float64), x, rtol=0, atol=tolerance * size, err_msg=name)


def law_of(pair, form, examples):
    @settings(max_examples=examples, database=None, phases=[Phase.generate])
    @given(shapes)
    def law(shape):
        compare(form, *draw(pair, **shape), np.float32, 1e-6)

    law()


@pytest.mark.parametrize(
    "pair, form", list(zip(PAIRS, itertools.cycle(FORMS), strict=False)), ids=lambda x: x if x in FORMS else name_of(x)
)
def test_every_pair_of_features_equals_the_definition_in_float64(pair, form):
    law_of(pair, form, 1)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
def test_every_pair_of_features_equals_the_definition_in_every_form(pair, form):
    law_of(pair, form, 5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 2e-2), (jnp.float16, 3e-3)], ids=["bfloat16", "float16"])
def test_half_precision_is_as_good_as_its_rounding(form, dtype, tolerance):
    features = [bias, segments, grouped, soft_cap, sinks]
    compare(form, *draw(features, B=2, T=33, S=29, K=2, H=16, seed=3), dtype, tolerance)
