"""MMDiT equals diffusers' SD3Transformer2DModel: outputs, gradients and parameter names, at random fp32 weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from genjax.interop import sd3
from genjax.models.mmdit import MMDiT

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SIZES = {
    "plain": dict(depth=3, qk_norm=False, dual_attention_layers=0),
    "rms": dict(depth=2, qk_norm=True, dual_attention_layers=0),
    "dual": dict(depth=4, qk_norm=True, dual_attention_layers=2),
    "dual_everywhere": dict(depth=2, qk_norm=True, dual_attention_layers=2),
}
TEXT_WIDTH, POOLED_WIDTH = 20, 12


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", params=SIZES)
def pair(request):
    """(MMDiT, its random parameters, the diffusers network with the same weights)."""
    model = MMDiT(
        channels=3,
        patch_size=2,
        num_heads=2,
        head_dim=8,
        pos_embed_max_size=9,
        pos_embed_base_size=4,
        **SIZES[request.param],
    )
    abstract = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs(4, 4).values()))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random_weights(rng, leaf.shape), abstract)
    return model, params, in_diffusers(model, params)


def random_weights(rng, shape):
    """Every parameter random, the zero-initialised ones too, with outputs of order one."""
    fan_in = shape[-2] if len(shape) > 1 else 4
    return rng.normal(0, 0.7 * fan_in**-0.5, shape).astype(np.float32)


def in_diffusers(model, params):
    reference = diffusers.SD3Transformer2DModel(
        sample_size=model.pos_embed_base_size * model.patch_size,
        patch_size=model.patch_size,
        in_channels=model.channels,
        out_channels=model.channels,
        num_layers=model.depth,
        attention_head_dim=model.head_dim,
        num_attention_heads=model.num_heads,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=model.num_heads * model.head_dim,
        pooled_projection_dim=POOLED_WIDTH,
        pos_embed_max_size=model.pos_embed_max_size,
        dual_attention_layers=tuple(range(model.dual_attention_layers)),
        qk_norm="rms_norm" if model.qk_norm else None,
    )
    state_dict = sd3.to_diffusers(params, **untold_sizes(model))
    reference.load_state_dict({name: torch.tensor(array) for name, array in state_dict.items()}, strict=True)
    return reference


def untold_sizes(model):
    names = ("patch_size", "pos_embed_max_size", "pos_embed_base_size")
    return {name: getattr(model, name) for name in names}


def inputs(height, width, batch=3):
    rng = np.random.default_rng(2)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "x_t": normal(batch, height, width, 3),
        "t": np.array([1.0, 0.5, 0.25][:batch], np.float32),  # 1000 t is a whole number: both frameworks see the same t
        "context": normal(batch, 7, TEXT_WIDTH),
        "pooled": normal(batch, POOLED_WIDTH),
    }


def run_diffusers(reference, x_t, t, context, pooled):
    """The output of the reference, a torch tensor (B,H,W,C)."""
    output = reference(
        hidden_states=torch.tensor(x_t).permute(0, 3, 1, 2),
        encoder_hidden_states=torch.tensor(context),
        pooled_projections=torch.tensor(pooled),
        timestep=1000 * torch.tensor(t),
    ).sample
    return output.permute(0, 2, 3, 1)


@pytest.mark.parametrize("height,width", [(8, 8), (4, 10), (18, 6)])
def test_forward_equals_diffusers(pair, height, width):
    model, params, reference = pair
    batch = inputs(height, width)
    ours = jax.jit(model.apply)({"params": params}, **batch)
    theirs = run_diffusers(reference, **batch).detach().numpy()
    assert 0.5 < theirs.std() < 2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_gradients_equal_diffusers(pair):
    model, params, reference = pair
    batch = inputs(4, 6)
    target = np.random.default_rng(3).normal(size=batch["x_t"].shape).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradients(params):
        return jnp.square(model.apply({"params": params}, **batch) - target).mean()

    ours = flatten_dict(gradients(params), sep=".")

    reference.zero_grad()
    (run_diffusers(reference, **batch) - torch.tensor(target)).square().mean().backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}
    theirs["pos_embed.pos_embed"] = reference.pos_embed.pos_embed.numpy()
    theirs = flatten_dict(sd3.from_diffusers(theirs), sep=".")

    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        error, size = np.linalg.norm(gradient - theirs[name]), np.linalg.norm(theirs[name])
        assert error <= 1e-5 * size, f"{name}: gradient of norm {size:.1e} is off by {error:.1e}"


def test_keys_and_shapes_are_those_of_diffusers(pair):
    model, params, reference = pair
    exported = sd3.to_diffusers(params, **untold_sizes(model))
    assert {name: array.shape for name, array in exported.items()} == {
        name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()
    }


def test_computed_position_embedding_is_the_stored_one(pair):
    model, params, _ = pair
    fresh = diffusers.SD3Transformer2DModel(
        sample_size=8,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        caption_projection_dim=16,
        pos_embed_max_size=9,
    )
    ours = sd3.to_diffusers(params, **untold_sizes(model))["pos_embed.pos_embed"]
    np.testing.assert_allclose(ours, fresh.pos_embed.pos_embed.numpy(), rtol=0, atol=1e-6)


def test_sizes_are_read_off_the_reference(pair):
    model, _, reference = pair
    state_dict = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    assert MMDiT(**sd3.sizes_from_diffusers(state_dict, head_dim=8)) == model


def test_original_layout_is_the_one_that_diffusers_converts(pair):
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    model, params, _ = pair
    original = {name: torch.tensor(array) for name, array in sd3.to_original(params, **untold_sizes(model)).items()}
    converted = single_file.convert_sd3_transformer_checkpoint_to_diffusers(original)
    ours = sd3.to_diffusers(params, **untold_sizes(model))
    assert converted.keys() == ours.keys()
    assert all(np.array_equal(converted[name].numpy(), ours[name]) for name in ours)
