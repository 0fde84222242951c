"""Stable Diffusion 3 (Esser et al. 2024) and 3.5, from a laptop's size to the published ones.

nano                        0.5 M parameters, in pixel space, on embedded scans of digits; trains in minutes on a CPU
latent_nano                 the same in the latents of vae-digits, which ships: the whole of SD3 but its size
emoji                       2.8 M parameters, in pixel space: draws emoji in colour from names; 100 minutes on a CPU
latent_emoji                the same in the latents of vae-emoji, which ships; 45 minutes on a CPU
medium, large               the shapes of SD3-medium and of the 8 B model
medium_35, large_35         the shapes of SD3.5
"""

from dataclasses import fields, replace

from genjax.data import Digits, Emoji, Images, Npz
from genjax.diffusion.grids import ShiftedTimes
from genjax.diffusion.solvers import DPMpp2M
from genjax.diffusion.times import LogitNormal
from genjax.models.autoencoder import Autoencoder
from genjax.models.byte_encoder import ByteEncoder
from genjax.models.mmdit import MMDiT
from genjax.models.word_encoder import WordEncoder
from genjax.quantisation.posterior import Posterior
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.conditions import Text
from genjax.tasks.denoising import Denoising, Sampler
from genjax.tasks.first_stage import FirstStage
from genjax.tasks.latent_denoising import LatentDenoising
from genjax.tasks.spaces import Latents
from genjax.training.optimizer import AdamW
from genjax.training.task import Train


def nano() -> Denoising:
    return Denoising(
        # On a CPU recomputing is cheaper than writing activations to memory, but for what attention gives.
        model=MMDiT(
            channels=1,
            depth=3,
            num_heads=2,
            head_dim=32,
            pos_embed_max_size=8,
            pos_embed_base_size=4,
            remat="attention",
        ),
        condition=Text(ByteEncoder(max_length=32, width=64, pooled_width=64)),
        times=LogitNormal(0.0, 1.0),
        sampler=Sampler(solver=DPMpp2M(), steps=20, guidance=1.3, grid=ShiftedTimes(1.0)),
        data=Images(image_size=8, channels=1),
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=100, decay="cosine", weight_decay=0.01),
        train=Train(steps=3000, batch_size=64, ema_decay=0.995, data_threads=0),
        checkpoint=Checkpoint(every=500),
    )


def emoji() -> Denoising:
    return Denoising(
        model=MMDiT(
            channels=3,
            patch_size=4,
            depth=4,
            num_heads=4,
            head_dim=32,
            pos_embed_max_size=8,
            pos_embed_base_size=8,
            remat="full",
        ),
        condition=Text(WordEncoder(vocabulary=1536, width=128, pooled_width=128, num_heads=4)),
        times=LogitNormal(0.5, 1.0),
        sampler=Sampler(solver=DPMpp2M(), steps=20, guidance=3.0, grid=ShiftedTimes(1.0)),
        data=Emoji(size=32),
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=200, decay="cosine", weight_decay=0.01),
        train=Train(steps=15_000, batch_size=32, ema_decay=0.999, data_threads=0, sample_every=250),
        checkpoint=Checkpoint(every=250),
    )


def in_latents(pixels: Denoising, first_stage: FirstStage, scale: float, **changed) -> LatentDenoising:
    """The same system on the codes of a first stage, each place a token; `scale` is one over their deviation."""
    said = {field.name: getattr(pixels, field.name) for field in fields(pixels)}
    model = pixels.model.clone(channels=first_stage.model.code_channels, patch_size=1)
    own = {"first_stage": first_stage, "model": model, "space": Latents(scale=scale)}
    return LatentDenoising(**said | own | changed)


def latent_nano() -> LatentDenoising:
    model = Autoencoder(
        image_channels=1, widths=(16, 32), blocks=1, z_channels=32, code_channels=2, moments=True, groups=8
    )
    first_stage = FirstStage(path="vae-digits", model=model, bottleneck=Posterior(weight=1e-3))
    return in_latents(nano(), first_stage, scale=0.67, data=Digits())


def latent_emoji() -> LatentDenoising:
    model = Autoencoder(widths=(16, 32, 64), blocks=1, z_channels=64, code_channels=4, moments=True, groups=8)
    first_stage = FirstStage(path="vae-emoji", model=model, bottleneck=Posterior(weight=1e-3))
    pixels = emoji()
    train = replace(pixels.train, steps=6000, sample_every=500)
    return in_latents(pixels, first_stage, scale=0.63, times=LogitNormal(0.0, 1.0), train=train)


def published(depth: int, **model) -> Denoising:
    """A network of the published family: `depth` blocks, `depth` heads of 64, on precomputed 16-channel latents."""
    return Denoising(
        model=MMDiT(channels=16, patch_size=2, depth=depth, num_heads=depth, head_dim=64, **model),
        condition=Text(ByteEncoder(max_length=256, width=4096, pooled_width=2048, num_heads=64)),
        space=Latents(),
        times=LogitNormal(0.0, 1.0),
        sampler=Sampler(solver=DPMpp2M(), steps=28, guidance=5.0, grid=ShiftedTimes(3.0)),
        data=Npz(),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=1000),
        train=Train(steps=500_000, batch_size=1024, precision="bf16"),
    )


VARIANTS = {
    "nano": nano,
    "latent_nano": latent_nano,
    "emoji": emoji,
    "latent_emoji": latent_emoji,
    "medium": lambda: published(24, qk_norm=False),
    "large": lambda: published(38, qk_norm=False),
    "medium_35": lambda: published(24, dual_attention_layers=13, pos_embed_max_size=384),
    "large_35": lambda: published(38),
}

_NANO = {
    "train": "--model.depth 2 --condition.encoder.depth 1 --train.batch_size 8 --sampler.steps 2",
    "sample": "--num 2 --steps 2",
    "evaluate": "--num 20 --steps 2",
}
_EMOJI = {
    "train": "--model.depth 1 --model.num_heads 2 --condition.encoder.vocabulary 64 --train.batch_size 4"
    " --sampler.steps 2",
    "sample": "--num 2 --steps 2",
    "evaluate": "--num 4 --steps 2 --judge_steps 2",
}
SMOKE = {"nano": _NANO, "latent_nano": _NANO, "emoji": _EMOJI, "latent_emoji": _EMOJI}
"""Words that make a variant small enough for the tests of every system, at each door."""
