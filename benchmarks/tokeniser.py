"""A tokeniser's training step and its decoder, genjax against diffusers' VQModel and torch.

    python benchmarks/tokeniser.py                   --batch-size 32 --rounds 10

The tokeniser is that of configs/vqgan.py:emoji with a codebook learned by gradients, on random pictures. torch, eager,
takes the same step: VQModel, a PatchGAN of its own layers, the adaptive weight by two backward passes to the last
kernel, a backward pass and an Adam for either player. Weights are equal, and losses and pictures are checked to be so
before any time is taken. A ratio of 1 is what we want.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import side_by_side as sbs
import torch
import tyro

from genjax import config
from genjax.interop import autoencoder
from genjax.parallel.host_memory import keep_freed_memory
from genjax.parallel.mesh import Mesh, replicated, shard_batch
from genjax.parallel.rules import unbox
from genjax.quantisation.vector import VQ
from genjax.training.state import initial_state
from genjax.training.update import make_update

CONFIGS = Path(__file__).parents[1] / "configs"
WANTED = 1.0


@dataclass(frozen=True)
class Options:
    """How much is compared."""

    batch_size: int = 32
    rounds: int = 10
    """Turns that each side takes, of 3 calls each."""


def networks(task, parts):
    """VQModel and PatchGAN of torch, with the weights of the parts."""
    model, own = task.model, parts.trained["autoencoder"]
    levels = len(model.widths)
    reference = diffusers.VQModel(
        in_channels=model.image_channels,
        out_channels=model.image_channels,
        block_out_channels=model.widths,
        layers_per_block=model.blocks,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=model.z_channels,
        norm_num_groups=model.groups,
        num_vq_embeddings=task.bottleneck.size,
        vq_embed_dim=task.bottleneck.width,
    )
    weights = autoencoder.to_diffusers(own["network"], own["quantiser"]["codebook"])
    reference.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=True)

    nn, params, layers, channels = torch.nn, parts.trained["critic"], [], model.image_channels
    for i in range(task.critic.layers + 1):
        width = task.critic.width * min(2**i, 8)
        convolution = nn.Conv2d(channels, width, 4, 1 if i == task.critic.layers else 2, 1, bias=i == 0)
        convolution.weight.data = torch.tensor(params[f"conv_{i}"]["kernel"].transpose(3, 2, 0, 1).copy())
        layers += [convolution, *([nn.GroupNorm(task.critic.groups, width)] if i else []), nn.LeakyReLU(0.2)]
        channels = width
    score = nn.Conv2d(channels, 1, 4, 1, 1)
    score.weight.data = torch.tensor(params["score"]["kernel"].transpose(3, 2, 0, 1).copy())
    for bias in (layers[0].bias, score.bias):
        nn.init.zeros_(bias)
    return reference, nn.Sequential(*layers, score)


def torch_step(task, reference, critic, image):
    """The step of both players."""
    rates = task.optimizer.learning_rate, task.critic_optimizer.learning_rate
    betas = task.optimizer.b1, task.optimizer.b2
    adams = [torch.optim.Adam(net.parameters(), lr, betas) for net, lr in zip((reference, critic), rates, strict=True)]
    last = reference.decoder.conv_out.weight

    def step():
        code, cost, _ = reference.quantize(reference.encode(image).latents)
        drawn = reference.decode(code, force_not_quantize=True).sample
        error, adversarial = (image - drawn).abs().mean(), -critic(drawn).mean()
        slopes = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, adversarial)]
        weight = task.adversarial_weight * (slopes[0] / (slopes[1] + 1e-4)).detach()
        loss = error + cost + weight * adversarial
        adams[0].zero_grad()
        loss.backward()
        adams[0].step()
        adams[1].zero_grad()
        hinge = (torch.relu(1 - critic(image))).mean() + torch.relu(1 + critic(drawn.detach())).mean()
        hinge.backward()
        adams[1].step()
        return (error + cost).item(), hinge.item()

    return step


def main(options: Options) -> None:
    keep_freed_memory()
    system, _ = config.load(f"{CONFIGS / 'vqgan.py'}:emoji")
    adam = replace(system.optimizer, warmup_steps=0, decay="constant", clip_norm=None)
    task = replace(
        system,
        bottleneck=VQ(system.bottleneck.size, system.bottleneck.width, 1.0, 0.25),  # as VQModel has them
        adversarial_start=0,
        adversarial_ramp=0,
        optimizer=adam,
        critic_optimizer=replace(adam, learning_rate=system.critic_optimizer.learning_rate),
        train=replace(system.train, batch_size=options.batch_size, ema_decay=None),
        mesh=Mesh(data=1),
    )
    mesh = task.mesh.build()
    state = jax.jit(lambda key: initial_state(task, key), out_shardings=replicated(mesh))(jax.random.key(0))
    parts = jax.tree.map(np.asarray, unbox(state.parts))
    shape = (options.batch_size, *system.data.image_shape)
    image = np.random.default_rng(0).uniform(-1, 1, size=shape).astype(np.float32)
    nchw = torch.tensor(image).permute(0, 3, 1, 2).contiguous()
    reference, critic = networks(task, parts)

    ids = task.ids_of(parts, image)
    code = np.asarray(task.codes(parts, ids))
    decode = jax.jit(lambda params, code: task.model.apply({"params": params}, code, method="decode"))
    params, ours_code = jax.device_put(parts.trained["autoencoder"]["network"]), jnp.asarray(code)
    theirs_code = torch.tensor(code).permute(0, 3, 1, 2).contiguous()

    def our_decoder():
        return np.asarray(decode(params, ours_code))

    @torch.inference_mode()
    def their_decoder():
        return reference.decode(theirs_code, force_not_quantize=True).sample.permute(0, 2, 3, 1).numpy()

    np.testing.assert_allclose(our_decoder(), their_decoder(), atol=1e-4)
    rows, ratios = [], {}

    def told(name, seconds):
        ratios[name] = seconds["torch"] / seconds["ours"]
        rows.append([name, 1e3 * seconds["ours"], 1e3 * seconds["torch"], ratios[name]])

    told("decode", sbs.medians(options.rounds, 3, ours=our_decoder, torch=their_decoder))

    update, batch = make_update(task, mesh), shard_batch({"image": image}, mesh)
    their_step = torch_step(task, reference, critic, nchw)
    state, first = update(state, batch)
    means = {name: float(total) / float(weight) for name, (total, weight) in jax.device_get(first).means.items()}
    own = means["reconstruction"] + means["codebook"] + means["commitment"]
    np.testing.assert_allclose([own, means["loss/critic"]], their_step(), rtol=1e-4)
    held = [state]

    def our_step():
        held[0], told = update(held[0], batch)
        jax.block_until_ready(told)

    told("training step", sbs.medians(options.rounds, 3, ours=our_step, torch=their_step))
    sbs.print_table(f"A tokeniser, batch {options.batch_size}", ["", "ours ms", "torch ms", "torch / ours"], rows)
    sbs.print_result(benchmark="tokeniser", ratio=min(ratios.values()), by_part=ratios, wanted=WANTED)


if __name__ == "__main__":
    main(tyro.cli(Options))
