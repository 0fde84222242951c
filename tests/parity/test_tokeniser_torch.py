"""A tokeniser's losses equal a torch composition: VQModel, a PatchGAN of torch layers, the adaptive weight; LPIPS.

The composition is written from the papers' equations with torch's own layers and backward passes; both players'
gradients, and the adaptive weight by two of autograd's, are compared.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from genjax.data import Digits
from genjax.interop import autoencoder
from genjax.interop.lpips import from_torch
from genjax.models.autoencoder import Autoencoder
from genjax.models.lpips import LPIPS
from genjax.models.patch_critic import PatchCritic
from genjax.parallel.rules import unbox
from genjax.quantisation.posterior import Posterior
from genjax.quantisation.vector import VQ
from genjax.tasks.tokeniser import Tokeniser

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

MODEL = Autoencoder(image_channels=1, widths=(4, 8), blocks=1, z_channels=4, code_channels=3, groups=2)
SLIPPED = VQ(size=6, width=3, commitment=1.0, codebook_weight=0.25)
"""VQModel has taming-transformers' slip (`legacy=True`): beta stands on the codebook's term."""
TASK = Tokeniser(model=MODEL, bottleneck=SLIPPED, critic=PatchCritic(width=4, layers=1), data=Digits())
KEYS = jax.random.split(jax.random.key(1), 3)


def nchw(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def patch_gan(params, norm, groups):
    """Isola et al.'s with one stride of 2, as torch's layers hold it."""
    nn = torch.nn
    width = params["conv_0"]["kernel"].shape[-1]
    normed = nn.BatchNorm2d(2 * width) if norm == "batch" else nn.GroupNorm(groups, 2 * width)
    layers = nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 1, 1, bias=False),
        normed,
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 4, 1, 1),
    )
    own = {
        "0.weight": params["conv_0"]["kernel"].transpose(3, 2, 0, 1),
        "0.bias": params["conv_0"]["bias"],
        "2.weight": params["conv_1"]["kernel"].transpose(3, 2, 0, 1),
        "3.weight": params["norm_1"]["scale"],
        "3.bias": params["norm_1"]["bias"],
        "5.weight": params["score"]["kernel"].transpose(3, 2, 0, 1),
        "5.bias": params["score"]["bias"],
    }
    layers.load_state_dict({name: torch.tensor(np.asarray(array)) for name, array in own.items()}, strict=False)
    return layers.train()


def close(ours, theirs, whole, name):
    error, size = np.linalg.norm(ours - theirs), np.linalg.norm(theirs)
    assert error <= 1e-5 * size + 1e-6 * whole, f"{name}: gradient of norm {size:.1e} is off by {error:.1e}"


def equal(ours, theirs):
    ours, theirs = (flatten_dict(tree, sep=".") for tree in (ours, theirs))
    assert ours.keys() == theirs.keys()
    whole = np.sqrt(sum(np.square(leaf).sum() for leaf in theirs.values()))
    for name, leaf in theirs.items():
        close(np.asarray(ours[name]), leaf, whole, name)


@pytest.mark.parametrize(("kind", "norm"), [("vq", "group"), ("vq", "batch"), ("kl", "batch")])
def test_losses_weight_and_gradients_of_both_players_equal_the_composition(kind, norm):
    task = replace(TASK, critic=PatchCritic(width=4, layers=1, norm=norm, groups=2))
    if kind == "kl":
        task = replace(task, bottleneck=Posterior(0.01), model=MODEL.clone(moments=True))
    parts = jax.tree.map(np.asarray, unbox(jax.jit(task.init)(jax.random.key(0))))
    rng = np.random.default_rng(0)
    critic = jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype(np.float32), parts.trained["critic"])
    own = parts.trained["autoencoder"]
    if kind == "vq":
        own = own | {"quantiser": {"codebook": rng.normal(size=(6, 3)).astype(np.float32)}}
    image = rng.uniform(-1, 1, size=(3, 8, 8, 1)).astype(np.float32)

    sizes = dict(
        in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1, latent_channels=4,
        norm_num_groups=2, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    codebook = own["quantiser"]["codebook"] if kind == "vq" else None
    if kind == "vq":
        reference = diffusers.VQModel(**sizes, num_vq_embeddings=6, vq_embed_dim=3)
    else:
        reference = diffusers.AutoencoderKL(**sizes | {"latent_channels": 4})
        task = replace(task, model=task.model.clone(code_channels=4))
        parts = jax.tree.map(np.asarray, unbox(jax.jit(task.init)(jax.random.key(0))))
        own = parts.trained["autoencoder"]
    weights = autoencoder.to_diffusers(own["network"], codebook)
    reference.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=True)
    discriminator = patch_gan(critic, norm, 2)

    x = nchw(image)
    if kind == "vq":
        code, cost, _ = reference.quantize(reference.encode(x).latents)
        drawn = reference.decode(code, force_not_quantize=True).sample
    else:
        posterior = reference.encode(x).latent_dist
        code_keys = jax.vmap(jax.random.split)(KEYS)[:, 0]
        noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 4)))(code_keys)
        drawn = reference.decode(posterior.mean + posterior.std * nchw(noise)).sample
        cost = 0.01 * posterior.kl().sum() / image.size
    error = (x - drawn).abs().mean()
    adversarial = -discriminator(drawn).mean()
    last = reference.decoder.conv_out.weight
    slopes = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, adversarial)]
    weight = (slopes[0] / (slopes[1] + 1e-4)).clamp(0, 1e4).detach()
    generator = error + 0.8 * weight * adversarial + cost
    generator.backward()
    their_slopes = {
        name: np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in reference.named_parameters()
    }
    discriminator.zero_grad()
    scores = discriminator(x), discriminator(drawn.detach())
    hinge = torch.relu(1 - scores[0]).mean() + torch.relu(1 + scores[1]).mean()
    hinge.backward()

    parts = parts._replace(
        trained={"autoencoder": own, "critic": critic},
        variables=parts.variables | {"adaptive_weight": np.float32(weight)},
    )

    def lost(trained, player):
        sums = task.loss(parts._replace(trained=trained), {"image": image}, KEYS, {"rows": 3.0})
        return sums.losses[player], sums

    with jax.default_matmul_precision("highest"):
        by_player = jax.jit(jax.value_and_grad(lost, has_aux=True), static_argnums=1)
        (ours, sums), slopes = by_player(parts.trained, "autoencoder")
        (our_hinge, _), critic_slopes = by_player(parts.trained, "critic")
    np.testing.assert_allclose(ours, generator.item(), rtol=1e-5)
    np.testing.assert_allclose(our_hinge, hinge.item(), rtol=1e-5)
    np.testing.assert_allclose(task.advance(parts, sums.statistics)["adaptive_weight"], weight, rtol=2e-5)

    expected = autoencoder.from_diffusers(their_slopes)
    equal(slopes["autoencoder"]["network"], expected.autoencoder)
    if kind == "vq":
        close(slopes["autoencoder"]["quantiser"]["codebook"], expected.codebook, 1.0, "codebook")
    theirs = {name: parameter.grad.numpy() for name, parameter in discriminator.named_parameters()}
    expected = {
        "conv_0": {"kernel": theirs["0.weight"].transpose(2, 3, 1, 0), "bias": theirs["0.bias"]},
        "conv_1": {"kernel": theirs["2.weight"].transpose(2, 3, 1, 0)},
        "norm_1": {"scale": theirs["3.weight"], "bias": theirs["3.bias"]},
        "score": {"kernel": theirs["5.weight"].transpose(2, 3, 1, 0), "bias": theirs["5.bias"]},
    }
    equal(critic_slopes["critic"], expected)


def test_lpips_equals_its_equation_in_torchs_layers():
    nn, rng = torch.nn, np.random.default_rng(0)
    widths = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    slices, state, number, into = nn.ModuleList(), {}, 0, 3
    for stage, (width, convolutions) in enumerate(widths):
        layers = [nn.MaxPool2d(2)] if stage else []
        for _ in range(convolutions):
            layers += [nn.Conv2d(into, width, 3, padding=1), nn.ReLU()]
            for kind in ("weight", "bias"):
                state[f"features.{number}.{kind}"] = getattr(layers[-2], kind).detach().numpy()
            number, into = number + 2, width
        number += 1
        slices.append(nn.Sequential(*layers))
        state[f"lin{stage}.model.1.weight"] = rng.random((1, width, 1, 1), np.float32)
    x, y = rng.uniform(-1, 1, size=(2, 2, 32, 16, 3)).astype(np.float32)

    theirs = 0
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    shift, scale = 2 * mean - 1, 2 * deviation  # ImageNet's, of pictures in [-1, 1]
    a, b = ((nchw(each) - shift) / scale for each in (x, y))
    for stage, layers in enumerate(slices):
        a, b = layers(a), layers(b)
        unit = [h / (h.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for h in (a, b)]
        head = torch.tensor(state[f"lin{stage}.model.1.weight"])
        theirs = theirs + nn.functional.conv2d((unit[0] - unit[1]).square(), head).mean(dim=(1, 2, 3))
    ours = jax.jit(lambda x, y: LPIPS().apply({"params": from_torch(state)}, x, y))(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)
