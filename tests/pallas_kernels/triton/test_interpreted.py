"""The Triton kernels, run by Triton's interpreter on the CPU, equal the definition of attention in float64.

The interpreter must be chosen before Triton is imported, so one process of its own runs all cases (this file, as a
script), and the tests compare what it wrote.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.derivatives import Fused
from pallas_kernels.dot_product_attention import dense, xla
from pallas_kernels.dot_product_attention.mask import tree
from pallas_kernels.dot_product_attention.problem import DIFFERENTIABLE, Settings, shapes

EPSILON = {"float32": 3e-6, "float16": 3e-3}
"""Accepted error, relative to the greatest entry, or to 1 if that is less."""


@dataclass(frozen=True)
class Case:
    """A problem; `features` names functions of FEATURES that add to it."""

    features: tuple[str, ...] = ()
    batch: int = 2
    queries: int = 21
    keys: int = 37
    heads: int = 2
    kv_heads: int = 1
    width: int = 12
    value_width: int = 12
    dtype: str = "float32"
    shared: tuple[str, ...] = ()
    """Operands that have batch size 1."""
    moving: tuple[str, ...] = DIFFERENTIABLE
    splits: int = 0
    """If positive: by the decoding kernel, with so many splits."""
    settings: dict = field(default_factory=dict)


def _normal(rng, case, *shape):
    return rng.normal(size=shape).astype(case.dtype)


def _integers(rng, low, high, *shape):
    return rng.integers(low, high, size=shape).astype(np.int32)


def _documents(rng, batch, length):
    return np.sort(_integers(rng, 0, 3, batch, length), axis=1)


def _bias(*full):
    def add(rng, c):
        shape = [
            size if axis in full else 1
            for axis, size in zip("bnts", (c.batch, c.heads, c.queries, c.keys), strict=True)
        ]
        return dict(bias=_normal(rng, c, *shape))

    return add


def _segments(rng, c):
    query, key = _documents(rng, c.batch, c.queries), _documents(rng, c.batch, c.keys)
    query[:, -3:], key[:, -5:] = -1, -1
    return dict(query_segments=query, key_segments=key)


def _ranges(rng, c):
    start = _integers(rng, 0, c.keys // 2, c.batch, c.queries)
    return dict(key_start=start, key_end=np.minimum(start + _integers(rng, 0, c.keys // 2, *start.shape), c.keys - 4))


def _tree(rng, c):
    parents = [int(rng.integers(-1, node)) if node else -1 for node in range(c.queries)]
    mask = tree(np.asarray(parents), c.keys - c.queries)
    return dict(ancestors=np.asarray(mask.ancestors), tree_start=np.asarray(mask.tree_start))


FEATURES = {
    "bias": _bias(*"bnts"),
    "bias of a row": _bias(*"bs"),
    "bias of a column": _bias(*"nt"),
    "bias of heads": _bias(*"nts"),
    "bias of one number": _bias(),
    "bias with -inf": lambda rng, c: dict(
        bias=np.where(rng.random((1, 1, c.queries, c.keys)) < 0.4, -np.inf, 0.5).astype(c.dtype)
    ),
    "sinks": lambda rng, c: dict(sinks=_normal(rng, c, c.batch, c.heads)),
    "shared sinks": lambda rng, c: dict(sinks=_normal(rng, c, 1, c.heads)),
    "segments": _segments,
    "ranges": _ranges,
    "lengths": lambda rng, c: dict(key_end=_integers(rng, 0, c.keys, c.batch, 1).repeat(c.queries, axis=1)),
    "nothing": lambda rng, c: dict(key_end=np.zeros((1, c.queries), np.int32)),
    "positions": lambda rng, c: dict(
        query_positions=_integers(rng, 0, 30, 1, c.queries), key_positions=_integers(rng, 0, 30, c.batch, c.keys)
    ),
    "tree": _tree,
    "dense": lambda rng, c: dict(dense=rng.random((c.batch, c.heads, c.queries, c.keys)) < 0.5),
    "dense of a row": lambda rng, c: dict(dense=rng.random((c.batch, 1, 1, c.keys)) < 0.5),
}  # fmt: skip
CAUSAL, WINDOW, CAP = dict(right=0), dict(left=6, right=3), dict(soft_cap=1.5)
CASES = {
    "plain": Case(),
    "whole tiles": Case(queries=32, keys=48, width=16, value_width=32),
    "grouped queries": Case(heads=4, kv_heads=2),
    "shared keys": Case(shared=("key", "value")),
    "shared queries": Case(shared=("query",)),
    "width of the value": Case(width=20, value_width=7),
    "one query": Case(queries=1),
    "causal": Case(queries=40, keys=40, batch=1, heads=1, settings=CAUSAL),
    "window": Case(settings=WINDOW),
    "long window": Case(queries=40, keys=40, batch=1, heads=1, settings=dict(left=25, right=0)),
    "strictly behind": Case(settings=dict(left=9, right=-2)),
    "soft cap": Case(settings=CAP),
    **{name: Case((name,)) for name in FEATURES},
    "causal positions": Case(("positions",), settings=CAUSAL),
    "causal segments with soft cap": Case(("segments",), settings=CAUSAL | CAP),
    "window with sinks": Case(("sinks",), settings=WINDOW),
    "soft cap with bias": Case(("bias of heads",), settings=CAP),
    "ranges with bias and sinks": Case(("ranges", "bias of a row", "sinks")),
    "tree after lengths": Case(("tree", "lengths", "sinks"), settings=CAP),
    "tree in positions": Case(("tree", "positions"), settings=CAUSAL),
    "segments and dense": Case(("segments", "dense of a row")),
    "only the query moves": Case(("segments",), moving=("query",)),
    "only the key moves": Case(moving=("key",)),
    "only the value moves": Case(moving=("value",)),
    "only the bias moves": Case(("bias of a column",), moving=("bias",)),
    "only the sinks move": Case(("sinks",), moving=("sinks",)),
    "half precision": Case(("segments", "bias"), dtype="float16", settings=CAUSAL),
    "half precision with soft cap": Case(("sinks",), dtype="float16", settings=CAP),
    "decode": Case(queries=1, keys=90, heads=6, kv_heads=2, splits=3),
    "decode lengths": Case(("lengths", "sinks"), queries=1, keys=90, heads=6, kv_heads=2, splits=3),
    "decode nothing": Case(("nothing",), queries=1, keys=90, heads=6, kv_heads=2, splits=2),
    "decode in one part": Case(("bias", "sinks"), queries=9, keys=90, heads=6, kv_heads=2, splits=1),
    "decode a window": Case(queries=9, keys=90, heads=6, kv_heads=2, splits=2, settings=WINDOW),
    "verify a tree": Case(("tree", "dense", "bias"), queries=9, keys=90, heads=6, kv_heads=2, splits=4),
    "verify in half precision": Case(("tree",), queries=9, keys=90, heads=6, kv_heads=2, dtype="float16", splits=2),
}


def build(name):
    """(operands, tangents, cotangents, settings) in numpy, equal in every process."""
    case = CASES[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    c = case
    shapes = dict(
        query=(c.batch, c.queries, c.heads, c.width),
        key=(c.batch, c.keys, c.kv_heads, c.width),
        value=(c.batch, c.keys, c.kv_heads, c.value_width),
    )
    operands = {k: _normal(rng, c, 1 if k in c.shared else shape[0], *shape[1:]) for k, shape in shapes.items()}
    for feature in c.features:
        operands |= FEATURES[feature](rng, c)
    tangents = {k: _normal(rng, c, *operands[k].shape) for k in c.moving if k in operands}
    out = _normal(rng, c, c.batch, c.queries, c.heads, c.value_width)
    lse = rng.normal(size=(c.batch, c.queries, c.heads)).astype(np.float32)
    return operands, tangents, (out, lse), Settings(**dict(scale=0.4) | c.settings)


def unseen(operands):
    """Keys (B,S) that are guaranteed never to be seen: outside all ranges, or padding by segment."""
    keys = operands["key"].shape[1]
    j = np.arange(keys)[None]
    dead = np.zeros((1, keys), bool)
    if "key_start" in operands:
        dead = dead | (j < operands["key_start"].min(1, keepdims=True))
    if "key_end" in operands:
        dead = dead | (j >= operands["key_end"].max(1, keepdims=True))
    if "key_segments" in operands:
        dead = dead | (operands["key_segments"] < 0)
    return dead[:, :, None, None]


def main(path):
    """In a process with TRITON_INTERPRET=1: runs every case with tiles of 16 and writes all results to `path`."""
    from pallas_kernels.triton import config, decode
    from pallas_kernels.triton.rules import RULES

    config.TABLE.update(dict.fromkeys(config.TABLE, config.SMALLEST))
    config.FLOAT32.clear()
    found = {}
    for name, case in CASES.items():
        operands, tangents, cotangents, settings = build(name)
        dead = unseen(operands)
        for poisoned in ("key", "value"):
            operands[poisoned] = np.where(dead, np.nan, operands[poisoned]).astype(case.dtype)
        operands = jax.tree.map(jnp.asarray, operands)
        if case.splits:
            outputs = decode.join(operands, settings, decode.plan(operands)[0], case.splits)
        else:
            outputs = RULES.forward(operands, settings)
        found |= {f"{name}/out": outputs[0], f"{name}/lse": outputs[1]}
        if case.splits:
            continue
        moved = RULES.tangent(jax.tree.map(jnp.asarray, tangents), operands, outputs, settings)
        found |= {f"{name}/out tangent": moved[0], f"{name}/lse tangent": moved[1]}
        wanted = tuple(name for name in case.moving if name in operands)
        gradients = RULES.backward(tuple(map(jnp.asarray, cotangents)), operands, outputs, wanted, settings)
        found |= {f"{name}/{key} gradient": x for key, x in gradients.items()}
    found |= {f"composed/{key}": x for key, x in composed(RULES).items()}
    np.savez(path, **{key: np.asarray(x) for key, x in found.items()})


def composed(rules):
    """A MeanFlow-like gradient, through a tangent with a stopped gradient, mapped over a batch with shared keys."""
    fused = Fused("interpreted", {"interpreted": rules}, xla.SECOND_ORDER, shapes)
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    query, speed, value, key = normal(3, 2, 9, 2, 8), normal(3, 2, 9, 2, 8), normal(3, 1, 17, 1, 8), normal(1, 17, 1, 8)

    def loss(query, key, value, speed):
        attend = lambda q, k: fused(dict(query=q, key=k, value=value), Settings(0.3, right=0), "interpreted")[0]  # noqa: E731
        out, dot = jax.jvp(attend, (query, key), (speed, jnp.ones_like(key)))
        return jnp.sum((out + jnp.sin(jax.lax.stop_gradient(dot))) ** 2)

    gradient = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2)), in_axes=(0, None, 0, 0)))
    return dict(zip(("query", "key", "value"), gradient(query, key, value, speed), strict=True))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pytest.importorskip("triton", reason="Triton is not installed")
    path = tmp_path_factory.mktemp("interpreted") / "results.npz"
    package = Path(dense.__file__).parents[2]
    environment = os.environ | dict(TRITON_INTERPRET="1", JAX_PLATFORMS="cpu", PYTHONPATH=str(package))
    subprocess.run([sys.executable, __file__, str(path)], env=environment, check=True, timeout=600)
    return dict(np.load(path))


def expected(name):
    """The same results by definition and by autodiff, in float64."""
    operands, tangents, cotangents, settings = build(name)
    dead = unseen(operands)
    for poisoned in ("key", "value"):
        operands[poisoned] = np.where(dead, 0, operands[poisoned])
    with jax.enable_x64(True):
        wide = lambda x: jnp.asarray(x, jnp.float64 if np.issubdtype(x.dtype, np.floating) else None)  # noqa: E731
        operands, tangents, cotangents = jax.tree.map(wide, (operands, tangents, cotangents))
        moving = {k: operands[k] for k in tangents}
        attend = lambda moving: dense.attend(operands | moving, settings)  # noqa: E731
        if CASES[name].splits:
            return dict(zip(("out", "lse"), map(np.asarray, attend({})), strict=True))
        (out, lse), (out_dot, lse_dot) = jax.jvp(attend, (moving,), (tangents,))
        (gradients,) = jax.vjp(attend, moving)[1](cotangents)
        found = {"out": out, "lse": lse, "out tangent": out_dot, "lse tangent": lse_dot}
        found |= {f"{key} gradient": x for key, x in gradients.items()}
        return {key: np.asarray(x) for key, x in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_definition_in_float64(results, name):
    case = CASES[name]
    for key, want in expected(name).items():
        found = results[f"{name}/{key}"]
        assert found.shape == want.shape
        assert found.dtype == (np.float32 if "lse" in key else case.dtype)
        finite = np.isfinite(want)
        np.testing.assert_array_equal(found[~finite], want[~finite], err_msg=key)
        scale = np.abs(want[finite]).max(initial=1.0)
        error = np.abs(found[finite] - want[finite]).max(initial=0) / scale
        assert error <= EPSILON[case.dtype], f"{key}: {error}"


def test_vmap_of_the_gradient_of_a_tangent_equals_that_of_plain_jax(results):
    for key, want in composed(xla.RULES).items():
        np.testing.assert_allclose(
            results[f"composed/{key}"], want, atol=3e-6 * np.abs(want).max(), rtol=0, err_msg=key
        )


if __name__ == "__main__":
    main(sys.argv[1])
