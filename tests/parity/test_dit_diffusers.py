"""DiT equals diffusers' DiTTransformer2DModel: outputs, all gradients and names, at random fp32 weights."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.interop import dit
from genjax.models.dit import SIZES, DiT

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

COMMON = dict(num_attention_heads=2, attention_head_dim=8, num_embeds_ada_norm=5, sample_size=8, in_channels=3)
CONFIGS = {
    "learned variance, as released": dict(out_channels=6, num_layers=3),
    "one block, other patches, epsilon as published": dict(num_layers=1, patch_size=4, norm_eps=1e-6),
}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """(DiT, its random parameters, the diffusers network with the same weights)."""
    reference = diffusers.DiTTransformer2DModel(**COMMON | CONFIGS[request.param]).eval()  # training drops labels
    model = DiT(**dit.sizes_from_config(reference.config))
    abstract = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), **inputs()))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random_weights(rng, leaf.shape), abstract)
    state_dict = dit.to_diffusers(params, patch_size=model.patch_size)
    reference.load_state_dict({name: torch.tensor(array) for name, array in state_dict.items()}, strict=True)
    return model, params, reference


def random_weights(rng, shape):
    """Every parameter random, the zero-initialised ones too, with outputs of order one."""
    fan_in = shape[-2] if len(shape) > 1 else 4
    return rng.normal(0, 0.7 * fan_in**-0.5, shape).astype(np.float32)


def inputs():
    return {
        "x_t": np.random.default_rng(2).normal(size=(3, 8, 8, 3)).astype(np.float32),
        "t": np.array([0.875, 0.5, 0.25], np.float32),  # 1000 t is a whole number: both frameworks see the same t
        "label": np.array([4, 0, 5]),  # the last one is the null class
    }


def test_outputs_and_gradients_equal_diffusers(pair):
    model, params, reference = pair
    batch = inputs()
    target = np.random.default_rng(3).normal(size=(3, 8, 8, 6 if model.learned_variance else 3)).astype(np.float32)

    def loss(params, x_t):
        output = model.apply({"params": params}, **batch | {"x_t": x_t})
        return jnp.square(output - target).mean(), output

    (_, output), (ours, our_slope) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, batch["x_t"])
    ours = flatten_dict(ours, sep=".")

    image = torch.tensor(batch["x_t"]).permute(0, 3, 1, 2).requires_grad_()
    reference.zero_grad()
    their_output = reference(image, 1000 * torch.tensor(batch["t"]), torch.tensor(batch["label"])).sample
    their_output = their_output.permute(0, 2, 3, 1)
    (their_output - torch.tensor(target)).square().mean().backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}
    theirs = flatten_dict(dit.from_diffusers(summed_over_copies(gradients)), sep=".")

    assert 0.3 < output.std() < 3
    np.testing.assert_allclose(output, their_output.detach().numpy(), rtol=0, atol=1e-5)
    assert ours.keys() == theirs.keys()
    pairs = {name: (ours[name], theirs[name]) for name in ours}
    pairs["x_t"] = our_slope, image.grad.permute(0, 2, 3, 1).numpy()
    for name, (gradient, their_gradient) in pairs.items():
        error, size = np.linalg.norm(gradient - their_gradient), np.linalg.norm(their_gradient)
        assert error <= 1e-5 * size, f"{name}: gradient of norm {size:.1e} is off by {error:.1e}"


def summed_over_copies(gradients):
    """Each block of theirs has embeddings of its own, which begin as copies; the gradient of one is the sum."""
    ends = {name: name.partition(".norm1.emb.")[2] for name in gradients}
    sums = {end: sum(gradients[name] for name in gradients if ends[name] == end) for end in set(ends.values()) - {""}}
    return {name: sums.get(ends[name], gradient) for name, gradient in gradients.items()}


def test_names_and_shapes_are_those_of_diffusers(pair):
    model, params, reference = pair
    exported = dit.to_diffusers(params, patch_size=model.patch_size)
    assert {name: array.shape for name, array in exported.items()} == {
        name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()
    }


def test_what_a_config_leaves_out_is_what_diffusers_makes_of_it():
    parameters = inspect.signature(diffusers.DiTTransformer2DModel).parameters
    theirs = {name: parameter.default for name, parameter in parameters.items()}
    for name, value in dit.ONLY.items():
        assert value == theirs[name], name
    assert dit.sizes_from_config({name: theirs[name] for name in dit.NEEDED}) == dit.sizes_from_config(theirs)


def test_the_largest_size_of_the_table_describes_what_was_released():
    """facebook/DiT-XL-2-256, in which every block stores the embeddings of time and class."""
    config = dict(num_attention_heads=16, attention_head_dim=72, out_channels=8, num_layers=28)
    with torch.device("meta"):
        reference = diffusers.DiTTransformer2DModel(**config)
    model = DiT(**dit.sizes_from_config(reference.config) | dit.PUBLISHED)
    assert model == DiT(**SIZES["XL/2"], learned_variance=True)
    arrays = (jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    abstract = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arrays))
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    stored = {name: parameter.numel() for name, parameter in reference.named_parameters()}
    copies = sum(size for name, size in stored.items() if ".norm1.emb." in name and ".0.norm1" not in name)
    assert count == sum(stored.values()) - copies
