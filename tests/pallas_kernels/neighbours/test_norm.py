"""Laws of the norms, their modulation and the gated residual before them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.neighbours.norm import layer_norm, residual_layer_norm, residual_rms_norm, rms_norm

FUNCTIONS = {"layer": (layer_norm, residual_layer_norm), "rms": (rms_norm, residual_rms_norm)}


def definition(kind, x, branch=None, gate=None, weight=None, bias=None, scale=None, shift=None, epsilon=1e-6):
    """(stream, out) in the dtype of the arguments; vectors broadcast."""
    stream = x if branch is None else x + (1 if gate is None else gate) * branch
    n = stream - stream.mean(-1, keepdims=True) if kind == "layer" else stream
    n = n / ((n * n).mean(-1, keepdims=True) + epsilon) ** 0.5
    n = n * (1 if weight is None else weight) + (0 if bias is None else bias)
    return stream, n * (1 + (0 if scale is None else scale)) + (0 if shift is None else shift)


def fused(kind, x, branch=None, gate=None, weight=None, bias=None, **others):
    affine = dict(weight=weight) if kind == "rms" else dict(weight=weight, bias=bias)
    if branch is None:
        return None, FUNCTIONS[kind][0](x, **affine, **others)
    return FUNCTIONS[kind][1](x, branch, gate, **affine, **others)


@st.composite
def problems(draw):
    """(kind, arrays by name): every vector may be absent, of samples, or of tokens; weight and bias of the width."""
    kind = draw(st.sampled_from(["layer", "rms"]))
    batch, tokens, width = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shapes = dict(x=(batch, tokens, width))
    if draw(st.booleans()):
        shapes["branch"] = shapes["x"]
    vectors = ["scale", "shift"] + ["gate"] * ("branch" in shapes)
    for name in vectors:
        shape = draw(st.sampled_from([None, (batch, 1, width), (1, 1, width), (batch, tokens, width)]))
        if shape is not None:
            shapes[name] = shape
    for name in ["weight", "bias"][: 2 if kind == "layer" else 1]:
        if draw(st.booleans()):
            shapes[name] = (width,)
    return kind, {name: rng.normal(1, 2, shape) for name, shape in shapes.items()}


@given(problems(), st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=12)
def test_equal_to_the_definition_in_float64(problem, dtype):
    kind, arrays = problem
    arrays = {name: jnp.asarray(x, dtype) for name, x in arrays.items()}
    stream, out = fused(kind, **arrays)
    assert out.dtype == dtype
    exact = {name: np.asarray(x, np.float64) for name, x in arrays.items()}
    if stream is not None:  # the norm reads the stream as it is stored
        rounded = np.asarray(stream, np.float64)
        np.testing.assert_allclose(
            rounded, definition(kind, **exact)[0], rtol=1e-6 if dtype == "float32" else 1e-2, atol=1e-5
        )
        exact |= dict(x=rounded, branch=0 * rounded)
    expected = definition(kind, **exact)[1]
    error = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=error, atol=error * np.abs(expected).max())


B, T, D = 2, 3, 5
CASES = {
    "LayerNorm": ("layer", dict(x=(B, T, D), weight=(D,), bias=(D,))),
    "LayerNorm, affine, and adaLN with a gated residual": (
        "layer",
        dict(x=(B, T, D), branch=(B, T, D), gate=(B, 1, D), weight=(D,), bias=(D,), scale=(B, 1, D), shift=(B, 1, D)),
    ),
    "RMSNorm, affine and modulated by tokens": (
        "rms",
        dict(x=(B, T, D), branch=(B, T, D), gate=(B, T, D), weight=(D,), scale=(B, T, D), shift=(1, 1, D)),
    ),
}


def drawn(case):
    kind, shapes = CASES[case]
    rng = np.random.default_rng(1)
    names = list(shapes)
    has_branch = "branch" in shapes

    def of(run):
        return lambda *x: run(kind, **dict(zip(names, x, strict=False)))[0 if has_branch else 1 :]

    return of(fused), of(definition), [rng.normal(size=shape) for shape in shapes.values()]


@pytest.mark.parametrize("case", list(CASES)[1:])
def test_every_derivative(every_derivative, case):
    ours, plain, arrays = drawn(case)
    every_derivative(ours, plain, *arrays)


def test_vmap_is_stacking(vmap_is_stacking):
    ours, _, arrays = drawn("LayerNorm")
    vmap_is_stacking(ours, *arrays[:2])


def test_modulation_by_sample_is_modulation_by_token_repeated():
    rng = np.random.default_rng(0)
    x, scale, shift = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(2, 7, 8), (2, 8), (2, 8)])
    repeated = [jnp.broadcast_to(v[:, None], x.shape) for v in (scale, shift)]
    once = layer_norm(x, scale=scale, shift=shift)
    np.testing.assert_array_equal(once, layer_norm(x, scale=repeated[0], shift=repeated[1]))


def test_further_axes_of_tokens_are_tokens():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 8)), jnp.float32)
    scale = x[:, 0, 0]
    flat = rms_norm(x.reshape(2, 12, 8), scale=scale)
    np.testing.assert_array_equal(rms_norm(x, scale=scale), flat.reshape(x.shape))


def test_derivatives_keep_nothing_in_float32_of_bfloat16():
    x = jnp.ones((2, 3, 8), jnp.bfloat16)
    _, pull = jax.vjp(lambda *x: residual_layer_norm(*x), x, x, x[:, :1])
    assert {leaf.dtype for leaf in jax.tree.leaves(pull) if leaf.size >= x.size} == {jnp.bfloat16.dtype}


@pytest.mark.parametrize(
    "refused, error, message",
    [
        (lambda x: layer_norm(x, scale=jnp.ones((3, 8))), ValueError, r"scale has shape \(3, 8\), accepted are"),
        (lambda x: residual_rms_norm(x, x[:1]), ValueError, r"branch has shape \(1, 3, 8\)"),
        (lambda x: layer_norm(x, implementation="cudnn"), ValueError, "accepted are None, 'xla' and 'triton'"),
        (
            lambda x: layer_norm(x.astype(int), implementation="triton"),
            NotImplementedError,
            "triton: int32, not one of",
        ),
        (
            lambda x: layer_norm(jnp.ones((1, 2, 20_000)), implementation="triton"),
            NotImplementedError,
            "triton: rows of more than 16384 bytes; xla takes it",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(refused, error, message):
    with pytest.raises(error, match=message):
        refused(jnp.ones((2, 3, 8)))


@pytest.mark.parity
def test_equal_to_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.normal(2, 3, size=s).astype(np.float32) for s in [(4, 6, 32), (32,), (32,)])
    tensors = [torch.from_numpy(v).requires_grad_() for v in (x, weight, bias)]
    functional = torch.nn.functional
    theirs = functional.layer_norm(tensors[0], (32,), tensors[1], tensors[2], eps=1e-6)
    ours, pull = jax.vjp(layer_norm, x, weight, bias)
    np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-5, atol=2e-6)
    theirs.backward(torch.from_numpy(np.cos(x)))
    for mine, tensor in zip(pull(jnp.cos(x)), tensors, strict=True):
        np.testing.assert_allclose(mine, tensor.grad, rtol=1e-4, atol=1e-5)
    theirs = functional.rms_norm(tensors[0], (32,), tensors[1], eps=1e-6).detach()
    np.testing.assert_allclose(rms_norm(x, weight), theirs, rtol=1e-5, atol=1e-6)
