"""Autoencoder equals diffusers' AutoencoderKL and VQModel: outputs, all gradients, names, and the original layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from genjax.interop import autoencoder
from tests.interop.test_autoencoder import MODELS, random_parameters

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

KINDS = {  # by name of the model: the class there, and what its config has beside the sizes
    "kl": (diffusers.AutoencoderKL, {}),
    "no convolutions between": (diffusers.AutoencoderKL, dict(use_quant_conv=False, use_post_quant_conv=False)),
    "vq": (diffusers.VQModel, dict(num_vq_embeddings=6, vq_embed_dim=3)),
    "no attention, one channel": (
        diffusers.VQModel,
        dict(num_vq_embeddings=6, vq_embed_dim=2, mid_block_add_attention=False),
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """(Autoencoder, its random parameters, the network of diffusers with the same weights)."""
    model, (kind, more) = MODELS[request.param], KINDS[request.param]
    attention = ["Attn" if level in model.attention_levels else "" for level in range(len(model.widths))]
    reference = kind(
        in_channels=model.image_channels,
        out_channels=model.image_channels,
        block_out_channels=model.widths,
        layers_per_block=model.blocks,
        down_block_types=tuple(f"{name}DownEncoderBlock2D" for name in attention),
        up_block_types=tuple(f"{name}UpDecoderBlock2D" for name in attention[::-1]),
        latent_channels=model.z_channels,
        norm_num_groups=model.groups,
        **more,
    )
    params = jax.tree.map(lambda leaf: leaf * 0.7 * max(4, leaf[..., 0].size) ** -0.5, random_parameters(request.param))
    codebook = None if kind is diffusers.AutoencoderKL else np.ones((6, model.code_width), np.float32)
    weights = {name: torch.tensor(array) for name, array in autoencoder.to_diffusers(params, codebook).items()}
    reference.load_state_dict(weights, strict=True)
    return model, params, reference


def test_outputs_and_gradients_of_both_sides_equal_diffusers(pair):
    model, params, reference = pair
    rng = np.random.default_rng(2)
    image = rng.normal(size=(2, 8, 12, model.image_channels)).astype(np.float32)
    variational = isinstance(reference, diffusers.AutoencoderKL)

    def loss(params, image):
        encoded = model.apply({"params": params}, image, method="encode")
        decoded = model.apply({"params": params}, encoded[..., : model.code_width], method="decode")
        return jnp.square(decoded - image).mean() + jnp.square(encoded).mean(), (encoded, decoded)

    with jax.default_matmul_precision("highest"):
        (_, outputs), (ours, our_slope) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, image)

    theirs = torch.tensor(image).permute(0, 3, 1, 2).requires_grad_()
    encoded = reference.encode(theirs)
    encoded = encoded.latent_dist.parameters if variational else encoded.latents
    code = encoded[:, : model.code_width]
    decoded = reference.decode(code, **{} if variational else {"force_not_quantize": True}).sample
    ((decoded - theirs).square().mean() + encoded.square().mean()).backward()
    for output, reference_output in zip(outputs, (encoded, decoded), strict=True):
        np.testing.assert_allclose(output, reference_output.detach().permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-5)

    gradients = {
        name: np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in reference.named_parameters()
    }
    expected = flatten_dict(autoencoder.from_diffusers(gradients).autoencoder, sep=".")
    pairs = {name: (gradient, expected[name]) for name, gradient in flatten_dict(ours, sep=".").items()}
    pairs["image"] = our_slope, theirs.grad.permute(0, 2, 3, 1).numpy()
    assert len(pairs) == len(expected) + 1
    whole = np.sqrt(sum(np.sum(np.square(gradient)) for gradient, _ in pairs.values()))
    for name, (gradient, their_gradient) in pairs.items():  # a bias before a norm has no gradient but rounding
        error, size = np.linalg.norm(gradient - their_gradient), np.linalg.norm(their_gradient)
        assert error <= 1e-5 * size + 1e-6 * whole, f"{name}: gradient of norm {size:.1e} is off by {error:.1e}"


def test_the_original_layout_becomes_that_of_diffusers_by_its_own_conversion(pair):
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    model, params, reference = pair
    if model.attention_levels or not model.middle_attention:
        pytest.skip("their conversion is of the KL autoencoders of Stable Diffusion alone")
    original = {name: torch.tensor(array) for name, array in autoencoder.to_original(params).items()}
    converted = convert_ldm_vae_checkpoint(original, dict(reference.config))
    expected = autoencoder.to_diffusers(params)
    assert converted.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(converted[name].numpy().reshape(array.shape), array, err_msg=name)
