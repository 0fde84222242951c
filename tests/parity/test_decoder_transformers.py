"""Decoder equals transformers' LlamaForCausalLM: logits, gradients, names and greedy text, at random fp32 weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta
from flax.traverse_util import flatten_dict
from jax.tree_util import Partial

from genjax.interop import llama
from genjax.keys import row_keys
from genjax.language.decoding import TokenSampler, generate
from genjax.language.losses import next_token_loss
from genjax.models.decoder import Decoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = dict(vocab_size=31, hidden_size=24, intermediate_size=40, num_hidden_layers=3, rms_norm_eps=1e-5)
SIZES = {
    "plain": dict(num_attention_heads=4, num_key_value_heads=4, head_dim=6),
    "grouped": dict(num_attention_heads=6, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-2),
    "multi-query, tied": dict(num_attention_heads=4, num_key_value_heads=1, head_dim=6, tie_word_embeddings=True),
    "long waves": dict(num_attention_heads=2, head_dim=12, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
}
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 13)).astype(np.int32)


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", params=SIZES)
def pair(request):
    """(Decoder, its random parameters, the network of transformers with the same weights)."""
    sizes = COMMON | {"tie_word_embeddings": False} | SIZES[request.param]
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = transformers.LlamaConfig(**sizes, **ids)
    reference = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    state_dict = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    return Decoder(**llama.sizes_from_config(config.to_dict())), llama.from_transformers(state_dict), reference


def test_logits_are_equal(pair):
    model, params, reference = pair
    ours = jax.jit(model.apply)({"params": params}, TOKENS)
    with torch.no_grad():
        theirs = reference(torch.from_numpy(TOKENS).long()).logits.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_loss_and_gradients_are_equal(pair):
    model, params, reference = pair

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        losses, counts = next_token_loss(model.apply({"params": params}, TOKENS), TOKENS)
        return losses.sum() / counts.sum()

    our_loss, gradients = loss(params)
    ours = flatten_dict(gradients, sep=".")

    reference.zero_grad()
    tokens = torch.from_numpy(TOKENS).long()
    their_loss = reference(tokens, labels=tokens).loss
    their_loss.backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}
    theirs = flatten_dict(llama.from_transformers(theirs), sep=".")

    np.testing.assert_allclose(our_loss, their_loss.item(), rtol=1e-6)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        error, size = np.linalg.norm(gradient - theirs[name]), np.linalg.norm(theirs[name])
        assert error <= 1e-5 * size, f"{name}: gradient of norm {size:.1e} is off by {error:.1e}"


def test_keys_and_shapes_are_those_of_transformers(pair):
    model, params, reference = pair
    ours = {name: array.shape for name, array in llama.to_transformers(params).items()}
    theirs = {name: tuple(parameter.shape) for name, parameter in reference.named_parameters()}  # a tied head once
    assert ours == theirs
    abstract = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract)


def test_packed_documents_have_the_logits_of_rows_of_their_own(pair):
    model, params, reference = pair
    segments = np.repeat([[0, 1, 2]], [4, 1, 8], axis=1) * np.ones((2, 1), np.int32)
    ours = jax.jit(model.apply)({"params": params}, TOKENS, segments=segments)
    with torch.no_grad():
        parts = [reference(torch.from_numpy(part.copy()).long()).logits for part in np.split(TOKENS, [4, 5], axis=1)]
    theirs = torch.cat(parts, dim=1).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_greedy_text_is_equal(pair):
    model, params, reference = pair
    network = Partial(model.apply, {"params": params})
    keys = row_keys(jax.random.key(0), np.arange(2))
    pieces = generate(
        network, TokenSampler(temperature=0), model.empty_cache(2, 33), TOKENS, [13, 13], keys, tokens=20, chunk=20
    )
    prompts = torch.from_numpy(TOKENS).long()
    theirs = reference.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), theirs[:, 13:].numpy())


@pytest.mark.parametrize(
    "fields",
    [
        dict(temperature=0.7),
        dict(top_k=4),
        dict(top_p=0.8),
        dict(min_p=0.2),
        dict(temperature=1.5, top_k=9, top_p=0.9, min_p=0.05),
    ],
)
def test_filtered_logits_are_those_of_the_warpers_of_transformers_in_their_order(fields):
    logits = (2 * np.random.default_rng(0).normal(size=(5, 31))).astype(np.float32)
    warpers = {
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    theirs = torch.from_numpy(logits)
    for name, value in fields.items():
        theirs = warpers[name](value)(None, theirs)
    np.testing.assert_allclose(TokenSampler(**fields).filtered(logits), theirs.numpy(), rtol=1e-6)
