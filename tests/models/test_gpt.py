"""Laws of the GPT; that it equals transformers' GPT2LMHeadModel is in tests/interop/test_gpt.py."""

import functools
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from genjax.keys import row_keys
from genjax.language.decoding import TokenSampler, generate
from genjax.models.gpt import GPT

SMALL = dict(vocabulary=11, positions=12, width=12, depth=3, num_heads=3, mlp_width=20)
PLAIN = GPT(**SMALL)
TIED = GPT(**SMALL, tie_embeddings=True)
OPEN = GPT(**SMALL, causal=False)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9)).astype(np.int32)

# These networks take longer to compile than to run.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def parameters(model: GPT):
    """Names, shapes and types; nothing is computed."""
    return meta.unbox(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 1), np.int32)))["params"]


@functools.cache
def weights(model: GPT):
    """Random weights with outputs of order one."""
    rng = np.random.default_rng(1)

    def random(leaf):
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 4
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    return jax.tree.map(random, parameters(model))


@functools.cache
def apply(model: GPT):
    return jit(lambda params, tokens, **options: model.apply({"params": params}, tokens, **options))


@functools.cache
def logits(model: GPT):
    return np.asarray(apply(model)(weights(model), TOKENS))


def changed_at(place: int) -> np.ndarray:
    """Tokens of which one, of the first row, is another."""
    other = TOKENS.copy()
    other[0, place] = (other[0, place] + 1) % 11
    return other


def test_no_token_sees_what_comes_after_it_and_all_see_what_came_before():
    for place in range(9):
        differs = np.abs(apply(PLAIN)(weights(PLAIN), changed_at(place)) - logits(PLAIN)).max(-1)
        assert not differs[0, :place].any() and not differs[1].any()
        assert (differs[0, place:] > 1e-4).all()


def test_without_causality_every_token_sees_every_other_of_its_row():
    for place in (0, 4, 8):
        differs = np.abs(apply(OPEN)(weights(OPEN), changed_at(place)) - logits(OPEN)).max(-1)
        assert (differs[0] > 1e-4).all() and not differs[1].any()


def test_without_causality_tokens_that_move_with_their_positions_take_their_logits_along():
    order = np.random.default_rng(2).permutation(9)
    positions = np.broadcast_to(order.astype(np.int32), (2, 9))
    found = apply(OPEN)(weights(OPEN), TOKENS[:, order], positions=positions)
    np.testing.assert_allclose(found, logits(OPEN)[:, order], rtol=0, atol=1e-5)


def test_the_last_token_of_one_block_sees_the_same_with_and_without_causality():
    causal, free = (GPT(**SMALL | {"depth": 1}, causal=causal) for causal in (True, False))
    found, expected = (apply(model)(weights(causal), TOKENS) for model in (causal, free))
    np.testing.assert_allclose(found[:, -1], expected[:, -1], rtol=0, atol=1e-5)
    assert (np.abs(found - expected)[:, :-1].max(-1) > 1e-4).all()


@pytest.mark.parametrize("pieces", [[1] * 9, [9], [4, 1, 4]], ids=["one by one", "prefill", "pieces"])
@pytest.mark.parametrize("model", [PLAIN, TIED], ids=["plain", "tied"])
def test_reading_into_a_cache_in_pieces_is_the_full_forward_pass(model, pieces):
    cache, found, start = model.empty_cache(2, 12), [], 0
    for count in pieces:
        piece, cache = apply(model)(weights(model), TOKENS[:, start : start + count], cache=cache)
        found.append(piece)
        start += count
        np.testing.assert_array_equal(cache.length, [start, start])
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits(model), rtol=0, atol=1e-5)


def test_prompts_of_different_lengths_go_on_each_from_its_own_end():
    read = apply(PLAIN)
    _, cache = read(weights(PLAIN), TOKENS[:, :4], cache=PLAIN.empty_cache(2, 12))
    rows = np.stack([TOKENS[0, 4:8], TOKENS[1, 1:5]])
    found, cache = read(weights(PLAIN), rows, cache=cache._replace(length=jnp.array([4, 1])))
    expected = np.stack([logits(PLAIN)[0, 4:8], logits(PLAIN)[1, 1:5]])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(cache.length, [8, 5])


@pytest.mark.parametrize("model", [PLAIN, TIED], ids=["plain", "tied"])
def test_a_reader_whose_blocks_are_apart_reads_as_the_scan_over_the_stack(model):
    network = model.reader(weights(model))
    assert len(network.args[0]["blocks"]) == model.depth
    (cache, found), read = (model.empty_cache(2, 12), []), jit(lambda network, *args, **more: network(*args, **more))
    for t in range(9):
        piece, cache = read(network, TOKENS[:, t : t + 1], cache=cache)
        found.append(piece)
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits(model), rtol=0, atol=1e-5)
    assert model.reader(weights(model)).func == network.func  # and so is compiled once


@pytest.mark.slow
def test_greedy_decoding_to_the_last_position_is_the_argmax_of_full_passes():
    rows, lengths = TOKENS[:, :5], [5, 2]
    keys, sampler = row_keys(jax.random.key(0), np.arange(2)), TokenSampler(temperature=0)
    pieces = generate(
        PLAIN.reader(weights(PLAIN)), sampler, PLAIN.empty_cache(2, 12), rows, lengths, keys, tokens=7, chunk=4
    )
    found = np.concatenate(list(pieces), axis=1)
    for row, length in enumerate(lengths):
        text = np.zeros((2, 12), np.int32)
        text[row, :length] = rows[row, :length]
        for t in range(length, length + 7):
            text[row, t] = np.argmax(apply(PLAIN)(weights(PLAIN), text)[row, t - 1])
        np.testing.assert_array_equal(found[row], text[row, length : length + 7])


def test_given_positions_are_those_of_the_table():
    default = apply(PLAIN)(weights(PLAIN), TOKENS, positions=np.broadcast_to(np.arange(9, dtype=np.int32), (2, 9)))
    np.testing.assert_allclose(default, logits(PLAIN), rtol=0, atol=1e-6)
    moved = weights(PLAIN) | {"position_embedding": np.roll(weights(PLAIN)["position_embedding"], 2, axis=0)}
    positions = np.broadcast_to(2 + np.arange(9, dtype=np.int32), (2, 9))
    np.testing.assert_allclose(apply(PLAIN)(moved, TOKENS, positions=positions), logits(PLAIN), rtol=0, atol=1e-6)


def test_vectors_that_are_embedded_already_are_transformed_as_tokens_are():
    params = weights(PLAIN)
    x = params["embed"]["embedding"][TOKENS]
    alone = {name: params[name] for name in ("blocks", "norm", "position_embedding")}
    fresh = meta.unbox(jax.eval_shape(functools.partial(PLAIN.init, method="transform"), jax.random.key(0), x))
    assert fresh["params"].keys() == alone.keys()  # neither an embedding nor a head
    hidden = jit(functools.partial(PLAIN.apply, method="transform"))({"params": alone}, x)
    np.testing.assert_allclose(hidden @ params["head"]["kernel"], logits(PLAIN), rtol=0, atol=1e-5)


def test_vectors_are_read_into_a_cache_as_tokens_are():
    params = weights(PLAIN)
    x, transform = params["embed"]["embedding"][TOKENS], jit(functools.partial(PLAIN.apply, method="transform"))
    hidden, cache = transform({"params": params}, x, cache=PLAIN.empty_cache(2, 12))
    np.testing.assert_allclose(hidden @ params["head"]["kernel"], logits(PLAIN), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(cache.length, [9, 9])


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        pytest.param(dict(width=768, depth=12, num_heads=12), 124_439_808, id="GPT-2"),
        pytest.param(dict(width=1600, depth=48, num_heads=25), 1_557_611_200, id="GPT-2 XL"),
    ],
)
def test_the_released_sizes_have_the_published_numbers_of_parameters(sizes, count):
    model = GPT(vocabulary=50257, positions=1024, tie_embeddings=True, **sizes)
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters(model))) == count


def test_the_number_of_parameters_is_that_of_its_tables_and_layers():
    V, P, D, M, layers = 11, 12, 12, 20, 3
    block = 2 * 2 * D + 4 * (D * D + D) + (D * M + M) + (M * D + D)
    expected = V * D + P * D + layers * block + 2 * D + D * V
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters(PLAIN))) == expected
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters(TIED))) == expected - D * V


@pytest.mark.slow
def test_fresh_weights_have_the_deviations_of_gpt_2_and_no_biases():
    model = GPT(vocabulary=64, positions=64, width=64, depth=2, num_heads=2)
    fresh = meta.unbox(jit(model.init)(jax.random.key(0), TOKENS))["params"]
    block = fresh["blocks"]
    inner = [block[name]["kernel"] for name in "qkv"] + [block["mlp"]["fc1"]["kernel"]]
    tables = [fresh["embed"]["embedding"], fresh["position_embedding"], fresh["head"]["kernel"]]
    for kernel in inner + tables:
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.05)
    for kernel in (block["o"]["kernel"], block["mlp"]["fc2"]["kernel"]):
        np.testing.assert_allclose(kernel.std(), 0.02 / np.sqrt(2 * 2), rtol=0.05)
    biases = [leaf for path, leaf in jax.tree.leaves_with_path(fresh) if path[-1].key == "bias"]
    assert len(biases) == 9 and not any(leaf.any() for leaf in biases)


@functools.cache
def gradient_and_work(policy: str):
    model = PLAIN.clone(remat=policy)

    def mean_square(params):
        return jnp.square(model.apply({"params": params}, TOKENS)).mean()

    program = str(jax.make_jaxpr(jax.grad(mean_square))(weights(PLAIN)))
    return jit(jax.grad(mean_square))(weights(PLAIN)), program.count(" erfc ")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["dots", "full"])
def test_rematerialisation_changes_no_name_and_no_gradient_and_adds_work(policy):
    assert parameters(PLAIN.clone(remat=policy)) == parameters(PLAIN)
    (plain, work), (found, more) = gradient_and_work("none"), gradient_and_work(policy)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), found, plain)
    assert more > work


def test_bfloat16_weights_give_float32_logits_near_those_of_float32():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights(PLAIN))
    found = apply(PLAIN)(half, TOKENS)
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - logits(PLAIN)) < 0.05 * np.linalg.norm(logits(PLAIN))


@pytest.mark.slow
def test_a_cache_of_bfloat16_stays_so_and_is_near_the_full_forward_pass():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights(PLAIN))
    found = apply(PLAIN)(half, TOKENS)
    cached, cache = apply(PLAIN)(half, TOKENS, cache=PLAIN.empty_cache(2, 9, jnp.bfloat16))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(cache.layers))
    assert np.linalg.norm(cached - found) < 0.05 * np.linalg.norm(found)


def test_what_changes_nothing_of_the_arithmetic_says_so():
    may_change = {field.name for field in fields(GPT) if field.metadata.get("may_change")}
    assert may_change == {"remat", "attention_implementation"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "width = 12 is not a multiple of num_heads = 5"),
        ({"depth": 0}, "depth of GPT is at least 1"),
        ({"positions": 0}, "positions of GPT is at least 1"),
        ({"mlp_width": 0}, "mlp_width of GPT is at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        parameters(GPT(**SMALL | changes))


def test_more_tokens_than_positions_or_than_a_cache_holds_are_refused():
    short = PLAIN.clone(positions=8)
    with pytest.raises(ValueError, match="a row of 9 tokens is longer than the 8 positions"):
        short.apply({"params": weights(short)}, TOKENS)
    with pytest.raises(ValueError, match="a row of 13 tokens is longer than the 12 positions"):
        PLAIN.empty_cache(2, 13)
    with pytest.raises(ValueError, match="a row of 12 tokens is longer than the 8 positions"):
        short.apply({"params": weights(short)}, TOKENS[:, :1], cache=PLAIN.empty_cache(2, 12))
    with pytest.raises(ValueError, match="9 tokens do not fit into a cache of 8"):
        PLAIN.apply({"params": weights(PLAIN)}, TOKENS, cache=PLAIN.empty_cache(2, 8))


def test_a_network_that_is_not_causal_takes_no_cache():
    with pytest.raises(ValueError, match="not causal takes no cache"):
        OPEN.apply({"params": weights(OPEN)}, TOKENS, cache=PLAIN.empty_cache(2, 12))
    with pytest.raises(ValueError, match="not causal takes no cache"):
        OPEN.empty_cache(2, 12)


def test_the_activation_is_the_one_that_is_named():
    """Its tanh form is close to the error function's gelu, and x sigmoid(1.702 x) less so."""
    tanh, quick = (
        np.abs(np.asarray(apply(PLAIN.clone(activation=name))(weights(PLAIN), TOKENS)) - logits(PLAIN)).max()
        for name in ("gelu_tanh", "quick_gelu")
    )
    assert 1e-6 < tanh < quick / 5
