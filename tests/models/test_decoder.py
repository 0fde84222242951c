"""Laws of the decoder."""

import functools
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from genjax.models.decoder import Decoder

SMALL = dict(vocabulary=11, width=12, depth=3, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=20)
GROUPED = Decoder(**SMALL)
TIED = Decoder(**SMALL | {"num_kv_heads": 4}, tie_embeddings=True)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9)).astype(np.int32)
SEGMENTS = np.array([[0, 0, 0, 0, 1, 1, 1, 2, -1], [4, 3, 3, 3, 3, 3, 3, 3, 3]], np.int32)

# These networks take longer to compile than to run.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def parameters(model: Decoder):
    """Names, shapes and types; nothing is computed."""
    return meta.unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))["params"]


@functools.cache
def weights(model: Decoder):
    """Random weights with outputs of order one."""
    rng = np.random.default_rng(1)

    def random(leaf):
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 4
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    return jax.tree.map(random, parameters(model))


@functools.cache
def apply(model: Decoder):
    return jit(lambda params, tokens, **options: model.apply({"params": params}, tokens, **options))


@functools.cache
def logits(model: Decoder):
    return np.asarray(apply(model)(weights(model), TOKENS))


def unrolled(model: Decoder, params, tokens):
    """The network of one row in numpy, float64, token by token and head by head."""
    params = jax.tree.map(np.float64, params)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + model.norm_epsilon) * scale

    def rotated(x):  # (T, heads, H)
        half = model.head_dim // 2
        angles = np.arange(len(x))[:, None] * model.rope_theta ** (-np.arange(half) / half)
        z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
        return np.concatenate([z.real, z.imag], -1)

    x = params["embed"]["embedding"][tokens]
    for layer in range(model.depth):
        block = jax.tree.map(lambda leaf, at=layer: leaf[at], params["blocks"])
        h = norm(x, block["attention_norm"]["scale"])
        q, k, v = ((h @ block[name]["kernel"]).reshape(len(x), -1, model.head_dim) for name in "qkv")
        q, k = rotated(q), rotated(k)
        attended = np.zeros_like(q)
        for head in range(model.num_heads):
            of = head // (model.num_heads // model.num_kv_heads)
            for t in range(len(x)):
                products = np.exp(k[: t + 1, of] @ q[t, head] / np.sqrt(model.head_dim))
                attended[t, head] = products @ v[: t + 1, of] / products.sum()
        x = x + attended.reshape(len(x), -1) @ block["o"]["kernel"]
        h = norm(x, block["mlp_norm"]["scale"])
        gate = h @ block["mlp"]["gate"]["kernel"]
        x = x + gate / (1 + np.exp(-gate)) * (h @ block["mlp"]["up"]["kernel"]) @ block["mlp"]["down"]["kernel"]
    x = norm(x, params["norm"]["scale"])
    return x @ (params["embed"]["embedding"].T if model.tie_embeddings else params["head"]["kernel"])


@pytest.mark.parametrize("model", [GROUPED, TIED], ids=["grouped", "tied"])
def test_it_equals_its_equations_written_out_in_float64(model):
    for row in range(2):
        np.testing.assert_allclose(logits(model)[row], unrolled(model, weights(model), TOKENS[row]), rtol=0, atol=2e-5)


def test_no_token_sees_what_comes_after_it_and_all_see_what_came_before():
    for place in range(9):
        other = TOKENS.copy()
        other[0, place] = (other[0, place] + 1) % 11
        differs = np.abs(apply(GROUPED)(weights(GROUPED), other) - logits(GROUPED)).max(-1)
        assert not differs[0, :place].any() and not differs[1].any()
        assert (differs[0, place:] > 1e-4).all()


@pytest.mark.slow
def test_packed_documents_have_the_logits_that_each_has_alone():
    packed = apply(GROUPED)(weights(GROUPED), TOKENS, segments=SEGMENTS)
    for row, segment in [(0, 0), (0, 1), (0, 2), (1, 4), (1, 3)]:
        places = np.flatnonzero(SEGMENTS[row] == segment)
        alone = np.zeros_like(TOKENS)  # at the start of a row of its own, where nothing behind it is seen
        alone[0, : len(places)] = TOKENS[row, places]
        expected = apply(GROUPED)(weights(GROUPED), alone)[0, : len(places)]
        np.testing.assert_allclose(packed[row, places], expected, rtol=0, atol=1e-5)


def test_a_document_is_not_moved_by_a_bit_by_what_is_packed_beside_it():
    packed = apply(GROUPED)(weights(GROUPED), TOKENS, segments=SEGMENTS)
    other = TOKENS.copy()
    other[0, 1] = (other[0, 1] + 1) % 11
    changed = apply(GROUPED)(weights(GROUPED), other, segments=SEGMENTS)
    np.testing.assert_array_equal(packed[0, 4:], changed[0, 4:])
    assert (np.abs(packed[0, 1:4] - changed[0, 1:4]).max(-1) > 1e-4).all()


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 1, 4]], ids=["prefill", "one by one", "pieces"])
@pytest.mark.parametrize("model", [GROUPED, TIED], ids=["grouped", "tied"])
def test_reading_into_a_cache_in_pieces_is_the_full_forward_pass(model, pieces):
    cache, found, start = model.empty_cache(2, 12), [], 0
    for count in pieces:
        piece, cache = apply(model)(weights(model), TOKENS[:, start : start + count], cache=cache)
        found.append(piece)
        start += count
        np.testing.assert_array_equal(cache.length, [start, start])
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", [GROUPED, TIED], ids=["grouped", "tied"])
def test_a_reader_whose_blocks_are_apart_reads_as_the_full_forward_pass(model):
    network = model.reader(weights(model))
    assert len(network.args[0]["blocks"]) == model.depth
    (cache, found), read = (model.empty_cache(2, 12), []), jit(lambda network, *args, **more: network(*args, **more))
    for t in range(9):
        piece, cache = read(network, TOKENS[:, t : t + 1], cache=cache)
        found.append(piece)
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits(model), rtol=0, atol=1e-5)
    assert model.reader(weights(model)).func == network.func  # and so is compiled once


def test_setting_the_length_back_forgets():
    read = apply(GROUPED)
    _, cache = read(weights(GROUPED), TOKENS[:, :4] % 3, cache=GROUPED.empty_cache(2, 12))
    _, cache = read(weights(GROUPED), TOKENS[:, 4:8], cache=cache._replace(length=jnp.zeros(2, jnp.int32)))
    _, cache = read(weights(GROUPED), TOKENS[:, :4], cache=cache._replace(length=jnp.zeros(2, jnp.int32)))
    again, _ = read(weights(GROUPED), TOKENS[:, 4:8], cache=cache)
    np.testing.assert_allclose(again, logits(GROUPED)[:, 4:8], rtol=0, atol=1e-5)


def test_rows_of_different_lengths_go_on_each_from_its_own_end():
    read = apply(GROUPED)
    _, cache = read(weights(GROUPED), TOKENS[:, :4], cache=GROUPED.empty_cache(2, 12))
    rows = np.stack([TOKENS[0, 4:8], TOKENS[1, 1:5]])
    found, cache = read(weights(GROUPED), rows, cache=cache._replace(length=jnp.array([4, 1])))
    expected = np.stack([logits(GROUPED)[0, 4:8], logits(GROUPED)[1, 1:5]])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(cache.length, [8, 5])


def test_a_shift_of_all_positions_changes_nothing():
    shifted = apply(GROUPED)(weights(GROUPED), TOKENS, positions=np.broadcast_to(100 + np.arange(9), (2, 9)))
    np.testing.assert_allclose(shifted, logits(GROUPED), rtol=0, atol=2e-4)  # the rounding of larger angles
    stretched = apply(GROUPED)(weights(GROUPED), TOKENS, positions=np.broadcast_to(2 * np.arange(9), (2, 9)))
    assert np.abs(stretched - logits(GROUPED)).max() > 1e-2


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        pytest.param(
            dict(vocabulary=32000, width=4096, depth=32, num_heads=32, num_kv_heads=32, head_dim=128, mlp_width=11008),
            6_738_415_616,
            id="Llama-2-7B",
        ),
        pytest.param(
            dict(vocabulary=128256, width=4096, depth=32, num_heads=32, num_kv_heads=8, head_dim=128, mlp_width=14336),
            8_030_261_248,
            id="Llama-3-8B",
        ),
        pytest.param(
            dict(
                **dict(vocabulary=128256, width=2048, depth=16, num_heads=32, num_kv_heads=8, head_dim=64),
                **dict(mlp_width=8192, tie_embeddings=True),
            ),
            1_235_814_400,
            id="Llama-3.2-1B",
        ),
    ],
)
def test_the_released_sizes_have_the_published_numbers_of_parameters(sizes, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters(Decoder(**sizes)))) == count


def test_a_fresh_network_expects_every_token_alike():
    fresh = jit(GROUPED.init_with_output)(jax.random.key(0), TOKENS)[0]
    assert np.abs(jax.nn.log_softmax(fresh) + np.log(11)).max() < 0.5


@functools.cache
def gradient_and_work(policy: str):
    model = GROUPED.clone(remat=policy)

    def mean_square(params):
        return jnp.square(model.apply({"params": params}, TOKENS, segments=SEGMENTS)).mean()

    program = str(jax.make_jaxpr(jax.grad(mean_square))(weights(GROUPED)))
    return jit(jax.grad(mean_square))(weights(GROUPED)), program.count(" logistic ")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["dots", "full"])
def test_rematerialisation_changes_no_name_and_no_gradient_and_adds_work(policy):
    assert parameters(GROUPED.clone(remat=policy)) == parameters(GROUPED)
    (plain, work), (found, more) = gradient_and_work("none"), gradient_and_work(policy)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), found, plain)
    assert more > work


def test_bfloat16_weights_give_float32_logits_near_those_of_float32():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights(GROUPED))
    found = apply(GROUPED)(half, TOKENS)
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - logits(GROUPED)) < 0.05 * np.linalg.norm(logits(GROUPED))
    assert len(np.unique(np.asarray(found))) > found.size / 2  # not rounded to the few numbers of bfloat16
    cached, cache = apply(GROUPED)(half, TOKENS, cache=GROUPED.empty_cache(2, 9, jnp.bfloat16))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(cache.layers))
    assert np.linalg.norm(cached - found) < 0.05 * np.linalg.norm(found)


def test_what_changes_nothing_of_the_arithmetic_says_so():
    may_change = {field.name for field in fields(Decoder) if field.metadata.get("may_change")}
    assert may_change == {"remat", "attention_implementation"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads = 4 is not a multiple of num_kv_heads = 3"),
        ({"head_dim": 5}, "head_dim = 5 is odd"),
        ({"depth": 0}, "depth of Decoder is at least 1"),
        ({"rope_theta": 0.0}, "rope_theta of Decoder is at least 1"),
        ({"norm_epsilon": -1e-6}, "norm_epsilon of Decoder is at least 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        parameters(Decoder(**SMALL | changes))


def test_a_cache_takes_no_segments_and_no_more_than_it_holds():
    for options, message in [({"segments": SEGMENTS}, "not both"), ({}, "9 tokens do not fit into a cache of 8")]:
        with pytest.raises(ValueError, match=message):
            GROUPED.apply({"params": weights(GROUPED)}, TOKENS, cache=GROUPED.empty_cache(2, 8), **options)
