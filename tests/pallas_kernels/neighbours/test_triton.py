"""The Triton kernels of the neighbours: interpreted in numpy they equal the plain form in float64; they lower for CUDA
and compile for Hopper without spills; on a GPU they equal the plain form there too.

The interpreter must be chosen before Triton is imported, so one process of its own runs all cases (this file, as a
script), and the tests compare what it wrote.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.neighbours.grouped_matmul import grouped_matmul
from pallas_kernels.neighbours.norm import layer_norm, residual_layer_norm, residual_rms_norm, rms_norm
from pallas_kernels.neighbours.rotary import qk_norm_rotary, rotary

EPSILON = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
"""Accepted error, relative to the greatest entry, or to 1 if that is less."""

X, SAMPLE, WIDTH = (2, 5, 24), (2, 24), (24,)
HEADS, KEYS, PARTLY, WHOLE = (2, 5, 3, 24), (2, 5, 1, 24), (1, 5, 8), (2, 5, 12)


def modulated(norm):
    return lambda x, branch, gate, scale, shift, **how: norm(x, branch, gate, scale=scale, shift=shift, **how)


def affine(x, branch, gate, weight, scale, shift, **how):
    return residual_rms_norm(x, branch, gate, weight, scale=scale, shift=shift, **how)


def turned(layout, norm):
    return functools.partial(qk_norm_rotary if norm else rotary, layout=layout)


def grouped(*sizes):
    return lambda lhs, rhs, **how: grouped_matmul(lhs, rhs, jnp.asarray(sizes), **how)


def mapped(function, *axes):
    return lambda *x, **how: jax.vmap(functools.partial(function, **how), axes)(*x)


# Each operation, and the shapes of its arguments.
CASES = {
    "LayerNorm, affine": (layer_norm, X, WIDTH, WIDTH),
    "RMSNorm": (rms_norm, X),
    "LayerNorm of many narrow rows": (layer_norm, (1, 300, 8), (8,)),
    "adaLN with a gated residual": (modulated(residual_layer_norm), X, X, SAMPLE, SAMPLE, SAMPLE),
    "by tokens, and affine": (affine, X, X, X, WIDTH, X, SAMPLE),
    "residual without a gate": (residual_rms_norm, X, X),
    "norms under vmap": (mapped(rms_norm, None, 0), X, (3, 24)),
    "rotary, interleaved": (turned("interleaved", False), HEADS, KEYS, WHOLE, WHOLE),
    "rotary, halves": (turned("halves", False), HEADS, KEYS, PARTLY, PARTLY),
    "qk-norm, interleaved": (turned("interleaved", True), HEADS, KEYS, PARTLY, PARTLY, WIDTH, WIDTH),
    "qk-norm, halves": (turned("halves", True), HEADS, KEYS, WHOLE, WHOLE, WIDTH),
    "groups, one empty, some rows left": (grouped(3, 0, 30, 4), (43, 20), (4, 20, 30)),
    "all rows in one group": (grouped(0, 43, 0), (43, 20), (3, 20, 30)),
    "no rows in any": (grouped(0, 0), (5, 20), (2, 20, 30)),
    "groups under vmap": (mapped(grouped(5, 4), 0, None), (2, 9, 4), (2, 4, 6)),
}
HALF = ("adaLN with a gated residual", "qk-norm, halves", "groups, one empty, some rows left")
INTERPRETED = [(name, "float32") for name in CASES] + [(name, "float16") for name in HALF]


def arrays(name, dtype):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape in CASES[name][1:]]


def results(name, dtype, implementation, exact=False):
    """Value, gradients and tangent of a case, flat; with `exact` computed in float64 from the same numbers."""
    function = functools.partial(CASES[name][0], implementation=implementation)
    given = [jnp.asarray(x, "float64" if exact else dtype) for x in arrays(name, dtype)]
    out, pull = jax.vjp(function, *given)
    cotangents = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape).astype(x.dtype), out)
    moved = jax.jvp(function, given, [x / 2 for x in given])[1]
    return [np.asarray(x) for x in jax.tree.leaves((out, pull(cotangents), moved))]


def assert_close(found, expected, dtype):
    for mine, exact in zip(found, expected, strict=True):
        error = EPSILON[dtype] * max(1, np.abs(exact).max())
        np.testing.assert_allclose(np.asarray(mine, np.float64), exact, rtol=0, atol=error)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the interpreter made of every case."""
    pytest.importorskip("triton", reason="needs Triton, for its interpreter")
    path = tmp_path_factory.mktemp("interpreted") / "results.npz"
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    subprocess.run([sys.executable, __file__, str(path)], env=environment, check=True, timeout=600)
    return dict(np.load(path))


@pytest.mark.parametrize("name, dtype", INTERPRETED)
def test_interpreted_kernels_equal_the_plain_form_in_float64(interpreted, name, dtype):
    with jax.enable_x64(True):
        expected = results(name, dtype, "xla", exact=True)
    assert_close([interpreted[f"{name} {dtype} {i}"] for i in range(len(expected))], expected, dtype)


@pytest.mark.parametrize("name", CASES)
def test_kernels_lower_for_cuda(name):
    if importlib.util.find_spec("jax_triton") is None:
        pytest.skip("needs jax-triton")
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in CASES[name][1:]]
    function = functools.partial(CASES[name][0], implementation="triton")

    def all_of(*x):
        out, pull = jax.vjp(function, *x)
        return pull(out), jax.jvp(function, x, x)[1]

    lowered = jax.jit(all_of).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton_kernel_call" in lowered


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_no_kernel_spills_on_hopper(dtype):
    pytest.importorskip("triton", reason="needs Triton, for its compiler")
    from pallas_kernels.neighbours.resources import report

    for name, used in report(jnp.dtype(dtype)).items():
        assert used["spills"] == 0, f"{name}: {used}"
        assert used["shared"] <= 227 * 1024, f"{name}: {used}"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_plain_form_on_a_gpu(name, dtype):
    with jax.enable_x64(True):
        expected = results(name, dtype, "xla", exact=True)
    assert_close(results(name, dtype, "triton"), expected, dtype)


@pytest.mark.gpu
def test_backward_passes_are_deterministic_on_a_gpu():
    x = jax.random.normal(jax.random.key(0), (4, 1024, 512), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda v: modulated(residual_layer_norm)(x, x, v, v, v)[1].astype(jnp.float32).sum()))
    np.testing.assert_array_equal(gradient(x[:, 0]), gradient(x[:, 0]))


if __name__ == "__main__":
    found = {
        f"{name} {dtype} {i}": x for name, dtype in INTERPRETED for i, x in enumerate(results(name, dtype, "triton"))
    }
    np.savez(sys.argv[1], **found)
