"""Laws of the network of masked autoregressive models; its transformer is a GPT, with laws of its own."""

import jax
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.models.mar import MAR, DenoisingHead
from genjax.nn.embeddings import timestep_embedding

MODEL = MAR(vector_width=3, vocabulary=5, positions=8, width=8, depth=2, num_heads=2, head_width=12, head_depth=2)
RNG = np.random.default_rng(0)
PREFIX = np.array([[1, 4], [0, 2]], np.int32)
VECTORS = RNG.normal(size=(2, 6, 3)).astype(np.float32)
HIDDEN = np.array([[1, 0, 0, 1, 0, 1], [0, 0, 1, 1, 1, 1]], bool)
X_T = RNG.normal(size=(2, 6, 3)).astype(np.float32)
T = RNG.uniform(size=(2, 6)).astype(np.float32)


def random(params):
    """Weights with outputs of order one, instead of zeros."""
    return jax.tree.map(lambda leaf: RNG.normal(0, 0.3, leaf.shape).astype(np.float32), meta.unbox(params))


@pytest.fixture(scope="module")
def params():
    return random(jax.eval_shape(MODEL.init, jax.random.key(0), PREFIX, VECTORS, HIDDEN, X_T, T)["params"])


def said(params, prefix=PREFIX, vectors=VECTORS, x_t=X_T):
    return np.asarray(MODEL.apply({"params": params}, prefix, vectors, HIDDEN, x_t, T))


def test_hidden_vectors_are_never_read_and_every_place_hears_of_known_ones_and_of_the_prefix(params):
    whole = said(params)
    assert whole.shape == X_T.shape and whole.dtype == np.float32
    np.testing.assert_array_equal(said(params, vectors=np.where(HIDDEN[..., None], np.nan, VECTORS)), whole)
    changed = VECTORS.copy()
    changed[0, 4] += 1
    moved = np.abs(said(params, vectors=changed) - whole).max(axis=-1)
    assert (moved[0] > 1e-4).all() and (moved[1] == 0).all()
    assert (np.abs(said(params, prefix=PREFIX[::-1]) - whole).max(axis=-1) > 1e-4).all()


def test_the_head_says_of_a_vector_what_it_and_its_z_are(params):
    changed = X_T.copy()
    changed[1, 2] += 1
    moved = np.abs(said(params, x_t=changed) - said(params)).max(axis=-1) > 1e-6
    assert np.argwhere(moved).tolist() == [[1, 2]]


def test_the_halves_are_the_whole(params):
    weights = {"params": params}
    z = MODEL.apply(weights, PREFIX, VECTORS, HIDDEN, method="read")
    assert z.shape == (2, 6, 8)
    flat = MODEL.apply(weights, X_T.reshape(12, 3), T.reshape(12), z.reshape(12, 8), method="denoise")
    np.testing.assert_array_equal(flat.reshape(2, 6, 3), said(params))


def test_the_head_is_its_definition():
    head = DenoisingHead(vector_width=3, width=12, depth=2)
    x, t, z = RNG.normal(size=(5, 3)), RNG.uniform(size=5), RNG.normal(size=(5, 8))
    x, t, z = (array.astype(np.float32) for array in (x, t, z))
    params = random(jax.eval_shape(head.init, jax.random.key(0), x, t, z)["params"])
    w = {"/".join(name): np.asarray(leaf, np.float64) for name, leaf in flatten_dict(params).items()}

    def silu(x):
        return x / (1 + np.exp(-x))

    def linear(name, x):
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    def mlp(name, x):
        return linear(f"{name}/fc2", silu(linear(f"{name}/fc1", x)))

    def modulated(x, shift, scale):
        deviation = x - x.mean(-1, keepdims=True)
        return deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale) + shift

    c = mlp("t_embedder", np.asarray(timestep_embedding(1000 * t, 256), np.float64)) + linear("z_embedder", z)
    h = linear("x_embedder", x)
    for i in range(2):
        shift, scale, gate = np.split(linear(f"modulation{i}/linear", silu(c)), 3, axis=-1)
        h = h + gate * mlp(f"mlp{i}", modulated(h, shift, scale))
    shift, scale = np.split(linear("final_modulation/linear", silu(c)), 2, axis=-1)
    np.testing.assert_allclose(
        head.apply({"params": params}, x, t, z),
        linear("final_linear", modulated(h, shift, scale)),
        rtol=2e-5,
        atol=2e-5,
    )


def test_a_fresh_network_says_nothing_and_has_neither_table_nor_head_of_tokens():
    fresh = meta.unbox(MODEL.init(jax.random.key(0), PREFIX, VECTORS, HIDDEN, X_T, T)["params"])
    assert not said(fresh).any()
    assert set(fresh["transformer"]) == {"blocks", "norm", "position_embedding"}


@pytest.mark.parametrize("field", ["vector_width", "vocabulary", "positions", "width", "head_width", "head_depth"])
def test_sizes_that_are_none_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} of .* is at least 1, not 0"):
        jax.eval_shape(replace_of(field), jax.random.key(0), PREFIX, VECTORS, HIDDEN, X_T, T)


def replace_of(field):
    return MODEL.clone(**{field: 0}).init


def test_more_places_than_positions_are_refused():
    with pytest.raises(ValueError, match="a row of 8 tokens is longer than the 7 positions"):
        jax.eval_shape(MODEL.clone(positions=7).init, jax.random.key(0), PREFIX, VECTORS, HIDDEN, X_T, T)
