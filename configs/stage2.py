"""Second stages (Esser et al. 2021, arXiv:2012.09841, section 3.2): pictures from the ids of a tokeniser.

ar          scikit-learn's 8x8 digits from 4 x 4 ids, one after the other, by the transformer of GPT-2
maskgit     the same ids in eight steps (Chang et al. 2022, arXiv:2202.04200)
latent_dit  the same digits from 4 x 4 x 2 numbers, by denoising all (Rombach et al. 2022, arXiv:2112.10752)
mar         the same numbers in eight steps, each place's two by denoising (Li et al. 2024, arXiv:2406.11838)

They stand on vqgan-digits and vae-digits, which ship: configs/vqgan.py:digits and configs/vae.py:digits make them.
Minutes on a CPU.
"""

from genjax.data import Digits
from genjax.diffusion.grids import ShiftedTimes
from genjax.diffusion.solvers import Heun
from genjax.diffusion.times import LogitNormal
from genjax.models.autoencoder import Autoencoder
from genjax.models.dit import DiT
from genjax.models.gpt import GPT
from genjax.models.mar import MAR
from genjax.quantisation.posterior import Posterior
from genjax.quantisation.vector import AverageVQ
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.autoregressive import Autoregressive
from genjax.tasks.code_sampling import AutoregressiveSampler, MaskedSampler, MaskedVectorSampler
from genjax.tasks.conditions import Label
from genjax.tasks.denoising import Sampler
from genjax.tasks.first_stage import FirstStage
from genjax.tasks.latent_denoising import LatentDenoising
from genjax.tasks.masked_autoregressive import MaskedAutoregressive
from genjax.tasks.masked_generation import MaskedGeneration
from genjax.tasks.spaces import Latents
from genjax.training.optimizer import AdamW
from genjax.training.task import Train

VQGAN_DIGITS = FirstStage(
    path="vqgan-digits",
    model=Autoencoder(image_channels=1, widths=(16, 32), blocks=1, z_channels=32, code_channels=4, groups=8),
    bottleneck=AverageVQ(size=64, width=4),
)
VAE_DIGITS = FirstStage(
    path="vae-digits",
    model=Autoencoder(
        image_channels=1, widths=(16, 32), blocks=1, z_channels=32, code_channels=2, moments=True, groups=8
    ),
    bottleneck=Posterior(weight=1e-3),
)
CODES, CLASSES, PLACES = 64, 11, 16  # one class is the null
SCALE = 0.67
"""One over the standard deviation of the numbers that the autoencoder makes of digits."""

COMMON = dict(
    data=Digits(),
    optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, decay="cosine", weight_decay=0.1, b2=0.95),
    train=Train(steps=2000, batch_size=64, ema_decay=0.995, data_threads=0),
    checkpoint=Checkpoint(every=500),
)


def ar() -> Autoregressive:
    return Autoregressive(
        first_stage=VQGAN_DIGITS,
        model=GPT(vocabulary=CODES + CLASSES, positions=1 + PLACES, width=64, depth=3, num_heads=4),
        sampler=AutoregressiveSampler(guidance=1.25),
        corruption=0.1,
        **COMMON,
    )


def maskgit() -> MaskedGeneration:
    return MaskedGeneration(
        first_stage=VQGAN_DIGITS,
        model=GPT(vocabulary=CODES + CLASSES + 1, positions=1 + PLACES, width=64, depth=3, num_heads=4, causal=False),
        sampler=MaskedSampler(steps=8, guidance=1.5, choice_temperature=10.0),
        **COMMON,
    )


def latent_dit() -> LatentDenoising:
    return LatentDenoising(
        first_stage=VAE_DIGITS,
        model=DiT(channels=2, patch_size=1, depth=3, num_heads=2, head_dim=32, num_classes=10, remat="attention"),
        condition=Label(),
        space=Latents(scale=SCALE),
        times=LogitNormal(0.0, 1.0),
        sampler=Sampler(solver=Heun(), steps=20, guidance=1.25, grid=ShiftedTimes(1.0)),
        **COMMON,
    )


def mar() -> MaskedAutoregressive:
    return MaskedAutoregressive(
        first_stage=VAE_DIGITS,
        model=MAR(
            vector_width=2,
            vocabulary=CLASSES,
            positions=1 + PLACES,
            width=64,
            depth=3,
            num_heads=4,
            head_width=64,
            head_depth=3,
        ),
        space=Latents(scale=SCALE),
        sampler=MaskedVectorSampler(steps=8, guidance=1.5, solver=Heun(), denoising_steps=10),
        **COMMON,
    )


VARIANTS = {"ar": ar, "maskgit": maskgit, "latent_dit": latent_dit, "mar": mar}

_SMALL = "--model.depth 1 --model.width 32 --model.num_heads 2 --train.batch_size 8"
SMOKE = {
    "ar": {"train": _SMALL, "sample": "--num 2 --sampler.guidance 1", "evaluate": "--num 20"},
    "maskgit": {"train": _SMALL, "sample": "--num 2 --sampler.steps 2", "evaluate": "--num 20"},
    "latent_dit": {
        "train": "--model.depth 1 --train.batch_size 8 --sampler.steps 2",
        "sample": "--num 2 --steps 2",
        "evaluate": "--num 20 --steps 2",
    },
    "mar": {
        "train": "--model.depth 1 --model.head_depth 1 --noises 1 --train.batch_size 8 --sampler.steps 2"
        " --sampler.denoising_steps 2",
        "sample": "--num 2 --sampler.steps 3",
        "evaluate": "--num 20",
    },
}
"""Words that make a variant small enough for the tests of every system, at each door."""
