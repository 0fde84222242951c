"""Laws of the chunked cross-entropy: that of all logits at once, without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.neighbours.cross_entropy import linear_cross_entropy


def definition(hidden, weights, labels, bias=None, soft_cap=None, label_smoothing=0.0, ignored=-100):
    """(loss, lse) by all logits at once."""
    xp = jnp if isinstance(hidden, jax.Array) else np
    z = hidden @ weights + (0 if bias is None else bias)
    z = z if soft_cap is None else soft_cap * xp.tanh(z / soft_cap)
    seen = labels != ignored
    lse = xp.log(xp.exp(z).sum(-1))
    log_p = z - lse[..., None]
    picked = xp.take_along_axis(log_p, xp.where(seen, labels, 0)[..., None], axis=-1)[..., 0]
    loss = -(1 - label_smoothing) * picked - label_smoothing * log_p.mean(-1)
    return xp.where(seen, loss, 0), xp.where(seen, lse, 0)


def drawn(rng, tokens, width, vocabulary):
    """hidden, weights, labels with some ignored, bias."""
    labels = np.where(rng.random(tokens) < 0.2, -100, rng.integers(0, vocabulary, tokens))
    return rng.normal(size=(tokens, width)), rng.normal(size=(width, vocabulary)), labels, rng.normal(size=vocabulary)


@given(
    st.sampled_from([(5, 7), (8, 12)]),
    st.sampled_from([1, 4, 5, 12]),
    st.booleans(),
    st.sampled_from([None, 2.0]),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 99),
)
@settings(max_examples=12)
def test_equal_to_the_definition_in_float64(sizes, chunk, with_bias, soft_cap, smoothing, seed):
    hidden, weights, labels, bias = drawn(np.random.default_rng(seed), sizes[0], 6, sizes[1])
    exact = [x.astype(np.float32).astype(np.float64) for x in (hidden, weights, bias)]
    hidden, weights, bias = (jnp.asarray(x, jnp.float32) for x in exact)
    settings = dict(soft_cap=soft_cap, label_smoothing=smoothing)
    ours = linear_cross_entropy(
        hidden, weights, jnp.asarray(labels), bias if with_bias else None, chunk=chunk, **settings
    )
    theirs = definition(exact[0], exact[1], labels, exact[2] if with_bias else None, **settings)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=2e-6)


def test_every_derivative(every_derivative):
    hidden, weights, labels, bias = drawn(np.random.default_rng(0), 6, 3, 7)
    settings = dict(soft_cap=2.0, label_smoothing=0.2)
    every_derivative(
        lambda h, w, b: linear_cross_entropy(h, w, jnp.asarray(labels), b, chunk=3, **settings),
        lambda h, w, b: definition(h, w, labels, b, **settings),
        hidden,
        weights,
        bias,
    )


def test_vmap_is_stacking(vmap_is_stacking):
    hidden, weights, labels, _ = drawn(np.random.default_rng(0), 4, 3, 5)
    vmap_is_stacking(lambda h, w: linear_cross_entropy(h, w, jnp.asarray(labels), chunk=5), hidden, weights)


def test_the_size_of_a_chunk_does_not_matter():
    hidden, weights, labels, bias = drawn(np.random.default_rng(0), 20, 8, 300)
    arrays = [jnp.asarray(x, jnp.float32) for x in (hidden, weights, bias)]
    labels = jnp.asarray(labels)

    def loss_and_gradients(chunk):
        def loss(h, w, b):
            loss, lse = linear_cross_entropy(h, w, labels, b, chunk=chunk)
            return (loss + 1e-3 * lse**2).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(*arrays)

    for one, two in zip(*map(jax.tree.leaves, (loss_and_gradients(64), loss_and_gradients(1000))), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_ignored_labels_have_no_loss_and_no_gradient():
    hidden, weights, labels, _ = drawn(np.random.default_rng(0), 16, 8, 30)
    hidden = 100 * hidden  # exp of such logits overflows
    labels[3] = -100

    def loss(h, w):
        loss, lse = linear_cross_entropy(h, w, jnp.asarray(labels), chunk=8)
        return (loss + lse**2).sum(), (loss, lse)

    grads, outs = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
        *(jnp.asarray(x, jnp.float32) for x in (hidden, weights))
    )
    for out in outs:
        np.testing.assert_array_equal(out[labels == -100], 0)
    np.testing.assert_array_equal(grads[0][labels == -100], 0)
    kept = labels != -100
    labels, all_grads = labels[kept], grads
    grads = jax.jit(jax.grad(lambda *x: loss(*x)[0], (0, 1)))(
        *(jnp.asarray(x, jnp.float32) for x in (hidden[kept], weights))
    )
    np.testing.assert_allclose(all_grads[1], grads[1], rtol=1e-5)


@pytest.mark.parametrize("label", [-1, 30, 31])
def test_a_label_that_does_not_exist_is_noticed(label):
    hidden, weights, _, _ = drawn(np.random.default_rng(0), 3, 8, 30)
    loss, lse = linear_cross_entropy(hidden, weights, jnp.array([29, label, -100]), chunk=8)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
    assert np.isfinite(lse).all()


@pytest.mark.parametrize("order", ["value", "gradient", "tangent"])
def test_memory_holds_no_logits_of_all_tokens(order):
    tokens, width, vocabulary, chunk = 256, 16, 8192, 256
    shape = jax.ShapeDtypeStruct
    arrays = shape((tokens, width), jnp.float32), shape((width, vocabulary), jnp.float32)
    labels = shape((tokens,), jnp.int32)

    def loss(hidden, weights, labels):
        return linear_cross_entropy(hidden, weights, labels, chunk=chunk)[0].sum()

    orders = dict(
        value=loss,
        gradient=jax.grad(loss, (0, 1)),
        tangent=lambda h, w, y: jax.jvp(lambda h, w: loss(h, w, y), (h, w), (h, w)),
    )
    memory = jax.jit(orders[order]).lower(*arrays, labels).compile().memory_analysis()
    logits = tokens * vocabulary * 4
    assert memory.temp_size_in_bytes < logits / 4


def test_a_frozen_head_costs_no_gradient_of_its_own():
    shape = jax.ShapeDtypeStruct
    arrays = shape((64, 16), jnp.float32), shape((16, 4096), jnp.float32), shape((64,), jnp.int32)

    def flops(arguments):
        grad = jax.grad(lambda *x: linear_cross_entropy(*x, chunk=4096)[0].sum(), arguments)
        return jax.jit(grad).lower(*arrays).compile().cost_analysis()["flops"]

    assert flops((0, 1)) - flops(0) > 1.9 * 64 * 16 * 4096


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(hidden=jnp.ones((4, 5))), r"hidden has shape \(4, 5\), accepted is \(4, 3\)"),
        (dict(bias=jnp.ones(3)), r"bias has shape \(3,\), accepted is \(7,\)"),
        (dict(chunk=0), "chunk is 0, accepted are numbers of columns from 1"),
        (dict(label_smoothing=1.5), "label_smoothing is 1.5, accepted are numbers from 0 to 1"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(changes, message):
    arguments = dict(hidden=jnp.ones((4, 3)), weights=jnp.ones((3, 7)), labels=jnp.zeros(4, int)) | changes
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equal_to_torch(smoothing):
    torch = pytest.importorskip("torch")
    hidden, weights, labels, bias = drawn(np.random.default_rng(0), 20, 8, 50)
    hidden, weights, bias = (x.astype(np.float32) for x in (hidden, weights, bias))
    tensors = [torch.from_numpy(x).requires_grad_() for x in (hidden, weights, bias)]
    logits = tensors[0] @ tensors[1] + tensors[2]
    functional = torch.nn.functional
    theirs = functional.cross_entropy(logits, torch.from_numpy(labels), reduction="none", label_smoothing=smoothing)

    def loss(h, w, b):
        return linear_cross_entropy(h, w, jnp.asarray(labels), b, label_smoothing=smoothing, chunk=16)[0]

    ours, pull = jax.vjp(loss, hidden, weights, bias)
    np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    theirs.sum().backward()
    for mine, tensor in zip(pull(jnp.ones(20)), tensors, strict=True):
        np.testing.assert_allclose(mine, tensor.grad, rtol=1e-4, atol=1e-5)
