"""Laws of the rotary embedding: it turns pairs of numbers, so that products depend on differences of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.neighbours.rotary import angles, qk_norm_rotary, rotary

LAYOUTS = ("interleaved", "halves")


def turned(x, cos, sin, layout, weight=None, norm=False, epsilon=1e-6):
    """One of queries and keys by definition: pair by pair."""
    if norm:
        x = x / ((x * x).mean(-1, keepdims=True) + epsilon) ** 0.5 * (1 if weight is None else weight)
    pairs = cos.shape[-1]
    parts = [x[..., i] for i in range(x.shape[-1])]
    for p in range(pairs):
        i, j = (2 * p, 2 * p + 1) if layout == "interleaved" else (p, p + pairs)
        c, s = cos[..., None, p], sin[..., None, p]
        parts[i], parts[j] = parts[i] * c - parts[j] * s, parts[i] * s + parts[j] * c
    return (jnp if isinstance(x, jax.Array) else np).stack(parts, axis=-1)


def drawn(rng, batch, tokens, heads, width, pairs):
    """query, key of one head, cos, sin."""
    angle = rng.uniform(0, 6, size=(1, tokens, pairs))
    return (
        rng.normal(size=(batch, tokens, heads, width)),
        rng.normal(size=(batch, tokens, 1, width)),
        np.cos(angle),
        np.sin(angle),
    )


@given(
    st.sampled_from(LAYOUTS),
    st.integers(1, 3),
    st.sampled_from([(4, 1), (6, 3), (9, 4)]),
    st.booleans(),
    st.sampled_from(["float32", "bfloat16"]),
    st.integers(0, 99),
)
@settings(max_examples=15)
def test_equal_to_the_definition_in_float64(layout, heads, sizes, norm, dtype, seed):
    rng = np.random.default_rng(seed)
    query, key, cos, sin = drawn(rng, 2, 3, heads, *sizes)
    query, key = (jnp.asarray(x, dtype) for x in (query, key))
    cos, sin, weight = (jnp.asarray(x, jnp.float32) for x in (cos, sin, rng.normal(1, 1, size=sizes[0])))
    if norm:
        ours = qk_norm_rotary(query, key, cos, sin, weight, layout=layout)
    else:
        ours = rotary(query, key, cos, sin, layout=layout)
    exact = [np.asarray(x, np.float64) for x in (query, key, cos, sin, weight)]
    for found, x, scaled in zip(ours, exact[:2], (exact[4], None), strict=True):
        expected = turned(x, *exact[2:4], layout, scaled, norm)
        assert found.dtype == dtype
        error = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=error, atol=error * 4)


def test_every_derivative(every_derivative, layout="halves"):
    rng = np.random.default_rng(0)
    arrays = (*drawn(rng, 2, 3, 2, 4, 1), *rng.normal(1, 1, size=(2, 4)))

    def plain(query, key, cos, sin, query_weight, key_weight):
        query = turned(query, cos, sin, layout, query_weight, norm=True)
        return query, turned(key, cos, sin, layout, key_weight, norm=True)

    every_derivative(lambda *x: qk_norm_rotary(*x, layout=layout), plain, *arrays)


def test_vmap_is_stacking(vmap_is_stacking):
    query, key, cos, sin = drawn(np.random.default_rng(0), 2, 3, 2, 4, 2)

    def run(query, weight):
        return qk_norm_rotary(query, jnp.asarray(key), cos, sin, weight, layout="halves")

    vmap_is_stacking(run, query, query[0, 0, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [8, 6])
def test_products_depend_on_differences_of_positions(layout, width):
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(np.broadcast_to(x, (1, 12, 1, 8)), jnp.float32) for x in rng.normal(size=(2, 8)))
    cos, sin = angles(jnp.arange(12), width)
    query, key = rotary(query, key, cos[None], sin[None], layout=layout)
    products = np.einsum("ih,jh->ij", query[0, :, 0], key[0, :, 0])
    for difference in range(-11, 12):
        np.testing.assert_allclose(np.ptp(np.diagonal(products, difference)), 0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lengths_and_the_numbers_after_the_first_stay(layout):
    query, key, cos, sin = (jnp.asarray(x, jnp.float32) for x in drawn(np.random.default_rng(0), 2, 5, 3, 10, 3))
    after, _ = rotary(query, key, cos, sin, layout=layout)
    norms = [np.linalg.norm(x, axis=-1) for x in (after, query)]
    np.testing.assert_allclose(*norms, rtol=1e-6)
    np.testing.assert_array_equal(after[..., 6:], query[..., 6:])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_transpose_turns_back(layout):
    query, key, cos, sin = (jnp.asarray(x, jnp.float32) for x in drawn(np.random.default_rng(0), 2, 5, 3, 8, 4))
    after, pull = jax.vjp(lambda *x: rotary(*x, cos, sin, layout=layout), query, key)
    for original, returned in zip((query, key), pull(after), strict=True):
        np.testing.assert_allclose(returned, original, atol=1e-6)
    for back, pulled in zip(rotary(query, key, cos, -sin, layout=layout), pull((query, key)), strict=True):
        np.testing.assert_allclose(back, pulled, atol=1e-6)


def test_the_layouts_are_one_rotation_of_permuted_heads():
    query, key, cos, sin = (jnp.asarray(x, jnp.float32) for x in drawn(np.random.default_rng(0), 2, 5, 3, 8, 3))
    order = np.array([0, 2, 4, 1, 3, 5, 6, 7])
    halves, _ = rotary(query[..., order], key, cos, sin, layout="halves")
    interleaved, _ = rotary(query, key, cos, sin, layout="interleaved")
    np.testing.assert_array_equal(halves, interleaved[..., order])


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (
            dict(key=(2, 4, 1, 8)),
            ValueError,
            r"key has shape \(2, 4, 1, 8\), accepted is \(2, 3, any number of heads, 8\)",
        ),
        (dict(cos=(1, 3, 5), sin=(1, 3, 5)), ValueError, "rotate R = 10 numbers of a head of 8"),
        (dict(sin=(2, 3, 4)), ValueError, "sin has shape"),
        (
            dict(query=(2, 3, 1, 600), key=(2, 3, 1, 600)),
            NotImplementedError,
            "triton: heads wider than 512; xla takes it",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(changes, error, message):
    shapes = dict(query=(2, 3, 2, 8), key=(2, 3, 1, 8), cos=(1, 3, 4), sin=(1, 3, 4)) | changes
    arrays = {name: jnp.ones(shape) for name, shape in shapes.items()}
    with pytest.raises(error, match=message):
        rotary(**arrays, layout="halves", implementation="triton")


@pytest.mark.parity
def test_equal_to_llama_and_gptj():
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj")
    rng = np.random.default_rng(0)
    query, key = (rng.normal(size=(2, 7, heads, 16)).astype(np.float32) for heads in (4, 2))
    cos, sin = angles(jnp.arange(7), 16)
    tensors = [torch.from_numpy(x) for x in (query, key)]
    tables = [torch.from_numpy(np.concatenate([x, x], axis=-1))[None] for x in (cos, sin)]
    theirs = llama.apply_rotary_pos_emb(*tensors, *tables, unsqueeze_dim=2)
    for mine, other in zip(rotary(query, key, cos[None], sin[None], layout="halves"), theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
    tables = [torch.from_numpy(np.array(x))[None] for x in (sin, cos)]
    theirs = [gptj.apply_rotary_pos_emb(x, *tables) for x in tensors]
    for mine, other in zip(rotary(query, key, cos[None], sin[None], layout="interleaved"), theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


@pytest.mark.parity
def test_equal_to_flux():
    torch = pytest.importorskip("torch")
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    query = np.random.default_rng(0).normal(size=(2, 7, 3, 16)).astype(np.float32)
    cos, sin = angles(jnp.arange(7), 16)
    tables = tuple(torch.from_numpy(np.repeat(np.asarray(x), 2, axis=-1)) for x in (cos, sin))
    theirs = embeddings.apply_rotary_emb(torch.from_numpy(query), tables, sequence_dim=1)
    mine, _ = rotary(query, query, cos[None], sin[None], layout="interleaved")
    np.testing.assert_allclose(mine, theirs, atol=1e-6)
