"""Laws of the public function: what it takes, what it means, every derivative of it, and what it refuses."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from pallas_kernels import Mask, attention
from pallas_kernels.dot_product_attention.mask import blocks, prefix, tree


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def qkv(batch=2, queries=24, keys=24, heads=2, width=8, dtype=jnp.float32):
    return tuple(
        normal(batch, length, heads, width, seed=seed, dtype=dtype) for seed, length in enumerate((queries, keys, keys))
    )


def close(found, expected, tolerance):
    """Each array to `tolerance` of its largest number."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(jnp.abs(b).max())))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


LENGTHS = jnp.array([24, 9], jnp.int32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"local_window_size": 3},
        {"local_window_size": (4, 1)},
        {"is_causal": True, "local_window_size": 5},
        {"query_seq_lengths": LENGTHS, "key_value_seq_lengths": LENGTHS},
        {"bias": normal(1, 2, 24, 24)},
        {"mask": normal(2, 1, 24, 24) > -1},
    ],
    ids=lambda options: "+".join(options) or "full",
)
def test_it_means_what_jax_nn_means(options):
    expected = jax.nn.dot_product_attention(*qkv(), **options)
    np.testing.assert_allclose(attention(*qkv(), **options), expected, atol=1e-6)


def test_the_batch_axis_may_be_left_out():
    query, key, value = qkv(batch=1)
    alone, residual = attention(query[0], key[0], value[0], is_causal=True, return_residual=True)
    whole = attention(query, key, value, is_causal=True)
    assert residual.shape == alone.shape[:-1]
    np.testing.assert_array_equal(alone, whole[0])


def test_causal_by_position_is_causal_by_index_for_any_order_of_tokens():
    query, key, value = qkv()
    order = np.random.default_rng(0).permutation(24)
    positions = jnp.broadcast_to(jnp.asarray(order, jnp.int32), (2, 24))
    found = attention(query[:, order], key[:, order], value[:, order], is_causal=True, positions=positions)
    np.testing.assert_allclose(found, attention(query, key, value, is_causal=True)[:, order], atol=1e-6)


def test_a_pack_of_documents_is_the_documents_one_by_one():
    query, key, value = qkv(batch=1)
    ids = jnp.repeat(jnp.arange(3), 8)[None]
    packed = attention(query, key, value, is_causal=True, segment_ids=ids)
    for start in (0, 8, 16):
        part = slice(start, start + 8)
        alone = attention(query[:, part], key[:, part], value[:, part], is_causal=True)
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-6)


@pytest.mark.parametrize("length", [48, 700], ids=["one tile", "several tiles"])
def test_documents_of_a_pack_do_not_see_each_other(length):
    ids = jnp.sort(jnp.arange(length) * 3 // length)[None]
    run = jax.jit(
        jax.value_and_grad(
            lambda x: (attention(*x, segment_ids=ids) * (ids == 1)[..., None, None]).sum(), allow_int=True
        )
    )
    given = qkv(batch=1, queries=length, keys=length)
    other = [jnp.where((ids == 1)[..., None, None], x, 1e4 * normal(*x.shape, seed=9)) for x in given]
    (one, gradients), (two, others) = run(given), run(other)
    np.testing.assert_array_equal(one, two)
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[ids != 1], 0)


PADDING = {  # from (lengths, inside), by each way to say it
    "lengths": lambda lengths, inside: {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths},
    "segments": lambda lengths, inside: {"segment_ids": jnp.where(inside, 0, -1)},
    "dense": lambda lengths, inside: {"mask": inside[:, None, None, :] & inside[:, None, :, None]},
    "ranges": lambda lengths, inside: {"mask": Mask(key_end=jnp.where(inside, lengths[:, None], 0))},
}


@pytest.mark.parametrize("sinks", [None, jnp.array([0.5, -1.0])], ids=["", "sinks"])
@pytest.mark.parametrize("kind, length", [(k, 24) for k in PADDING] + [("lengths", 600), ("segments", 600)])
def test_what_padding_holds_never_leaks(kind, length, sinks):
    lengths = jnp.array([length - 7, length // 2], jnp.int32)
    used = jnp.arange(length) < lengths[:, None]
    options = PADDING[kind](lengths, used)
    moved = qkv(queries=length, keys=length)

    def everything(*x):
        f = functools.partial(attention, **options, sinks=sinks)
        out, tangent = jax.jvp(f, x, moved)
        return out, tangent, jax.grad(lambda *x: (f(*x) ** 2).sum(), argnums=(0, 1, 2))(*x)

    clean = qkv(queries=length, keys=length)
    poisoned = [jnp.where(used[..., None, None], x, jnp.nan) for x in clean]
    for a, b in zip(*(jax.tree.leaves(jax.jit(everything)(*x)) for x in (clean, poisoned)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[~used], 0)


def test_a_row_that_sees_nothing_gives_zero_and_its_residual_says_so():
    options = {"mask": Mask(key_end=jnp.zeros((1, 24), jnp.int32)), "return_residual": True}
    out, residual = attention(*qkv(), **options)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(residual, -jnp.inf)
    gradient = jax.grad(lambda q: attention(q, *qkv()[1:], **options)[0].sum())(qkv()[0])
    np.testing.assert_array_equal(gradient, 0)
    _, with_sinks = attention(*qkv(), **options, sinks=jnp.array([0.25, 2.0]))
    np.testing.assert_allclose(with_sinks, jnp.broadcast_to(jnp.array([0.25, 2.0]), with_sinks.shape), rtol=1e-6)


def test_a_bias_of_minus_infinity_hides_like_a_mask():
    seen = normal(1, 1, 24, 24) > 0
    hidden = jnp.where(seen.at[:, :, 3].set(False), 0.0, -jnp.inf)
    by_bias = jax.value_and_grad(lambda *x: attention(*x, hidden).sum(), argnums=(0, 1, 2))(*qkv())
    by_mask = jax.value_and_grad(lambda *x: attention(*x, mask=hidden == 0).sum(), argnums=(0, 1, 2))(*qkv())
    close(by_bias, by_mask, 1e-6)


def test_the_residual_joins_the_parts_of_a_split_over_keys():
    query, key, value = qkv()
    parts = [attention(query, key[:, s], value[:, s], return_residual=True) for s in (np.s_[:10], np.s_[10:])]
    whole = jax.nn.logsumexp(jnp.stack([lse for _, lse in parts]), axis=0)
    joined = sum(out * jnp.exp(lse - whole)[..., None] for out, lse in parts)
    np.testing.assert_allclose(joined, attention(query, key, value), atol=1e-6)


@pytest.mark.parametrize(
    "mask, dense",
    [
        (prefix(jnp.array([5, 9]), 24), lambda i, j: np.stack([(j < 5) | (j <= i), (j < 9) | (j <= i)])[:, None]),
        (blocks(6, 24), lambda i, j: (j // 6 <= i // 6)[None, None]),
        (blocks(6, 24, memory=1), lambda i, j: ((j // 6 <= i // 6) & (j // 6 >= i // 6 - 1))[None, None]),
    ],
    ids=["prefix", "blocks", "blocks with memory"],
)
def test_ready_made_masks_are_what_they_say(mask, dense):
    i, j = np.arange(24)[:, None], np.arange(24)[None]
    np.testing.assert_array_equal(np.broadcast_to(mask.to_dense(24, 24), dense(i, j).shape[:2] + (24, 24)), dense(i, j))
    expected = attention(*qkv(), mask=jnp.asarray(dense(i, j)))
    np.testing.assert_allclose(attention(*qkv(), mask=mask), expected, atol=1e-6)


def test_a_branch_of_a_token_tree_is_decoded_as_if_it_were_alone():
    parents = np.array([-1, 0, 0, 1, 2, 2, -1])
    query, key, value = qkv(queries=7, keys=20)
    whole = attention(query, key[:, :20], value[:, :20], mask=tree(parents, 13))
    for leaf in (3, 4, 5, 6):
        path, node = [], leaf
        while node >= 0:
            path.insert(0, node)
            node = parents[node]
        keys = np.r_[0:13, 13 + np.array(path)]
        alone = attention(query[:, [leaf]], key[:, keys], value[:, keys])
        np.testing.assert_allclose(whole[:, [leaf]], alone, atol=1e-6)


# Derivatives.


def test_gradients_are_the_slopes_of_the_value(x64):
    floats = (*qkv(batch=1, queries=5, keys=6, dtype=jnp.float64), normal(1, 2, 5, 6, seed=5), normal(2, seed=6))
    floats = tuple(x.astype(jnp.float64) for x in floats)

    @jax.jit
    def f(query, key, value, bias, sinks):
        out, lse = attention(
            query, key, value, bias, sinks=sinks, logits_soft_cap=2.0, local_window_size=3, return_residual=True
        )
        return jnp.sin(out).sum() + (lse**2).sum()

    check_grads(f, floats, order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


def meanflow(attend, parameters, x, t, v):
    """The loss of MeanFlow (arXiv:2505.13447, algorithm 1) with one layer of attention as its network, r = 0."""

    def network(x, t):
        query, key, value = jnp.split(x @ parameters * (1.0 + t), 3, axis=-1)
        return attend(query, key, value)

    u, slope = jax.jvp(network, (x, t), (v, jnp.ones_like(t)))
    return ((u - jax.lax.stop_gradient(v - t * slope)) ** 2).mean()


def plain(query, key, value):
    """Attention by its definition; autodiff does the rest."""
    logits = jnp.einsum("btnh,bsnh->bnts", query, key) * query.shape[-1] ** -0.5
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), value)


@pytest.mark.parametrize("length", [20, 600], ids=["one tile", "several tiles"])
def test_the_loss_of_meanflow_has_the_gradient_of_plain_autodiff(length):
    given = normal(8, 24), normal(1, length, 2, 8), jnp.full((1, 1, 1, 1), 0.4), normal(1, length, 2, 8, seed=1)
    found, expected = (jax.jit(jax.grad(functools.partial(meanflow, f)))(*given) for f in (attention, plain))
    close(found, expected, 1e-5)


def test_grad_of_meanflow_runs_each_kernel_once():
    given = normal(8, 24), normal(1, 20, 2, 8), jnp.full((1, 1, 1, 1), 0.4), normal(1, 20, 2, 8, seed=1)
    text = str(jax.make_jaxpr(jax.grad(functools.partial(meanflow, attention)))(*given))
    counts = {name: text.count(f"attention_{name}[") for name in ("forward", "tangent", "backward")}
    assert counts == {"forward": 1, "tangent": 1, "backward": 1}


SECOND = {
    "jvp of grad": lambda loss, x, t: jax.jvp(jax.grad(loss), (x,), (t,))[1],
    "grad of jvp": lambda loss, x, t: jax.grad(lambda x: jax.jvp(loss, (x,), (t,))[1])(x),
    "grad of grad": lambda loss, x, t: jax.grad(
        lambda x: sum((g * s).sum() for g, s in zip(jax.grad(loss)(x), t, strict=True))
    )(x),
}


@pytest.mark.parametrize("length", [20, 1100], ids=["one tile", "several tiles"])
@pytest.mark.parametrize("order", SECOND)
def test_second_derivatives_are_those_of_plain_autodiff(order, length):
    x, t = (tuple(normal(1, length, 1, 4, seed=seed + i) for i in range(3)) for seed in (0, 5))
    found, expected = (
        jax.jit(lambda x, t, f=f: SECOND[order](lambda x: jnp.sin(f(*x)).sum(), x, t))(x, t) for f in (attention, plain)
    )
    close(found, expected, 1e-5)


@pytest.mark.parametrize("length", [24, 600], ids=["one tile", "several tiles"])
def test_the_tangent_is_the_transpose_of_the_gradient(length):
    given = (*qkv(queries=length, keys=length), normal(1, 2, length, 1, seed=8))
    moved = tuple(normal(*x.shape, seed=20 + i) for i, x in enumerate(given))

    def f(*x):
        return attention(*x, is_causal=True, return_residual=True)

    outputs, tangents = jax.jvp(f, given, moved)
    weights = tuple(normal(*x.shape, seed=30 + i) for i, x in enumerate(outputs))
    gradients = jax.vjp(f, *given)[1](weights)
    forward = sum(np.vdot(a, b) for a, b in zip(weights, tangents, strict=True))
    reverse = sum(np.vdot(a, b) for a, b in zip(gradients, moved, strict=True))
    np.testing.assert_allclose(forward, reverse, rtol=2e-4)


# Inside the transformations of JAX.


@pytest.mark.parametrize("axes", [(0, 0, 0, 0), (0, None, None, None), (None, 0, 2, None), (None, None, 1, 0)], ids=str)
def test_vmap_is_a_loop(axes):
    given = [*qkv(), normal(1, 2, 24, 24)]
    stacked = [x if axis is None else jnp.stack([x, 2 * x, x - 1], axis) for x, axis in zip(given, axes, strict=True)]

    def f(*x):
        out, tangent = jax.jvp(lambda *x: attention(*x, is_causal=True), x, x)
        return out, tangent, jax.grad(lambda *x: (attention(*x) ** 2).sum(), argnums=(0, 1, 2, 3))(*x)

    def example(i):
        return f(*(x if a is None else jnp.take(x, i, a) for x, a in zip(stacked, axes, strict=True)))

    found = jax.vmap(f, in_axes=axes)(*stacked)
    expected = jax.tree.map(lambda *x: jnp.stack(x), *map(example, range(3)))
    quickly = jax.config.read("jax_disable_most_optimizations")  # rounds otherwise than what people run
    close(found, expected, 4e-6 if quickly else 2e-6)


@pytest.mark.parametrize("check", [True, False])
def test_shard_map_gives_what_one_device_gives(check):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    given, bias = qkv(), normal(1, 2, 24, 24)

    def f(query, key, value, bias):
        loss = lambda *x: (attention(*x, is_causal=True) ** 2).sum()  # noqa: E731
        bias = jax.lax.pcast(bias, "data", to="varying")
        gradients = jax.grad(loss, argnums=(0, 1, 2, 3))(query, key, value, bias)
        return *gradients[:3], jax.lax.psum(gradients[3], "data")

    specs = (P("data"), P("data"), P("data"), P())
    found = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=check))(*given, bias)
    expected = jax.grad(lambda *x: (attention(*x, is_causal=True) ** 2).sum(), argnums=(0, 1, 2, 3))(*given, bias)
    close(found, expected, 1e-6)


EXPLICIT = {
    "value": lambda attend: attend,
    "gradient": lambda attend: jax.grad(lambda *x: jnp.sin(attend(*x)).sum(), argnums=(0, 1)),
    "tangent": lambda attend: lambda x, bias: jax.jvp(attend, (x, bias), (x, bias))[1],
}


@pytest.mark.parametrize("of", EXPLICIT)
def test_on_an_explicit_mesh_each_device_attends_to_its_part_of_the_batch(of):
    x, bias, ids = normal(4, 24, 2, 8), normal(1, 2, 24, 24), jnp.repeat(jnp.arange(3), 8)[None]
    function = EXPLICIT[of](lambda x, bias: attention(x, x, x, bias, segment_ids=ids, is_causal=True))
    expected = function(x, bias)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        divided = jax.device_put(x, jax.NamedSharding(mesh, P("data")))
        compiled = jax.jit(function).lower(divided, bias).compile()
        found = compiled(divided, bias)
    close(found, expected, 2e-6)
    assert jax.tree.leaves(found)[0].sharding.spec[0] == "data"
    assert not {"all-gather", "all-to-all"} & set(re.findall(r"all-[a-z]+", compiled.as_text()))


def test_other_divisions_than_that_of_the_batch_are_refused_in_one_sentence():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(normal(2, 24, 2, 8), jax.NamedSharding(mesh, P(None, None, "model")))
        with pytest.raises(ValueError, match="accepted is a divided batch axis.*shard_map"):
            attention(x, x, x)


@pytest.mark.parametrize("inside", [False, True], ids=["left to XLA", "inside shard_map"])
def test_a_gpu_kernel_is_divided_by_shard_map_alone(inside):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.NamedSharding(mesh, P("data"))
    x = jax.ShapeDtypeStruct((2, 128, 2, 64), jnp.bfloat16, sharding=divided)
    attend = lambda x: attention(x, x, x, implementation="mosaic")  # noqa: E731
    if inside:
        attend = jax.shard_map(attend, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    lower = lambda: jax.jit(attend).trace(x).lower(lowering_platforms=("cuda",)).as_text()  # noqa: E731
    if inside:
        assert "mosaic_gpu" in lower()
    else:
        with pytest.raises(NotImplementedError, match="2 devices: call it inside jax.shard_map"):
            lower()


def test_a_scan_of_rematerialised_layers_has_the_same_gradient():
    x = 0.3 * qkv(batch=1)[0]

    def loss(x, wrap):
        layer = wrap(lambda x: x + attention(x, x, x, is_causal=True))
        return (jax.lax.scan(lambda x, _: (layer(x), None), x, None, length=3)[0] ** 2).sum()

    expected = jax.grad(loss)(x, lambda f: f)
    close(jax.grad(loss)(x, jax.checkpoint), expected, 2e-6)


def test_a_remat_policy_can_keep_the_outputs_so_that_the_forward_kernel_runs_once():
    def count(policy):
        f = jax.checkpoint(lambda q: jnp.sin(attention(q, q, q)), policy=policy)
        return str(jax.make_jaxpr(jax.grad(lambda q: f(q).sum()))(qkv()[0])).count("attention_forward[")

    assert count(jax.checkpoint_policies.save_only_these_names("attention_outputs")) == 1
    assert count(jax.checkpoint_policies.nothing_saveable) == 2


def test_memory_grows_with_the_length_and_not_with_its_square():
    def scratch(length):
        x = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)
        grad = jax.grad(lambda *x: attention(*x).sum(), argnums=(0, 1, 2))
        return jax.jit(grad).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert scratch(32768) < 2.5 * scratch(16384)
    assert scratch(32768) < 32 * 2**20  # one row of logits for each query would be 4 GiB


# Refusals.


@pytest.mark.parametrize(
    "given, options, said",
    [
        ({"key": normal(2, 24, 2, 4)}, {}, "widths must be equal"),
        ({"value": normal(2, 23, 2, 8)}, {}, "key has shape .* and value"),
        ({"query": normal(2, 24, 3, 8)}, {}, "3 query heads are no multiple of 2 key heads"),
        ({"key": normal(24, 2, 8)}, {}, "key has shape"),
        ({"query": jnp.zeros((2, 24, 2, 8), jnp.int32)}, {}, "dtype int32"),
        ({}, {"bias": normal(2, 2, 24, 23)}, r"bias has shape .*: accepted is \(2, 2, 24, 24\)"),
        ({}, {"mask": normal(2, 2, 24, 24)}, "mask has dtype float32: accepted are bool"),
        ({}, {"segment_ids": jnp.zeros((2, 23), jnp.int32)}, "segment_ids of queries has shape"),
        ({}, {"segment_ids": jnp.zeros((2, 24))}, "segment_ids of queries has dtype"),
        ({}, {"sinks": jnp.zeros(3)}, "sinks has shape"),
        ({}, {"key_value_seq_lengths": jnp.zeros(3, jnp.int32)}, "key_value_seq_lengths has shape"),
        ({}, {"mask": Mask(query_segments=jnp.zeros((1, 24), jnp.int32))}, "query_segments and key_segments together"),
        ({}, {"mask": Mask(key_end=jnp.zeros((1, 23), jnp.int32))}, "mask.key_end has shape"),
        ({}, {"implementation": "flash"}, "no implementation 'flash' of attention: accepted are"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(given, options, said):
    operands = dict(zip(("query", "key", "value"), qkv(), strict=True)) | given
    with pytest.raises(ValueError, match=said):
        attention(**operands, **options)
