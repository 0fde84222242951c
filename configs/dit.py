"""Diffusion transformers (Peebles and Xie 2023, arXiv:2212.09748), by class.

nano                  0.3 M parameters, in pixel space, on scikit-learn's 8x8 digits; trains in minutes on a CPU
s_2, b_2, l_2, xl_2   the published sizes with patches of 2, on precomputed 4-channel latents of ImageNet at 256 px
"""

from genjax.data import Digits, Npz
from genjax.diffusion.grids import ChainTimes
from genjax.diffusion.learned_variance import LearnedVariance
from genjax.diffusion.processes import DDPM
from genjax.diffusion.solvers import DDIM, Ancestral
from genjax.diffusion.times import ChainSteps
from genjax.models.dit import SIZES, DiT
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.conditions import Label
from genjax.tasks.denoising import Denoising, Sampler
from genjax.tasks.spaces import Latents
from genjax.training.optimizer import AdamW
from genjax.training.task import Train


def nano() -> Denoising:
    return Denoising(
        model=DiT(
            channels=1,
            patch_size=2,
            depth=3,
            num_heads=2,
            head_dim=32,
            num_classes=10,
            learned_variance=True,
            remat="attention",
        ),
        condition=Label(),
        process=DDPM("cosine"),
        prediction=LearnedVariance(levels=17),
        times=ChainSteps(),
        sampler=Sampler(solver=DDIM(), steps=50, guidance=1.5, grid=ChainTimes(), clip_denoised=1.0),
        data=Digits(),
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=100, decay="cosine", weight_decay=0.01),
        train=Train(steps=3000, batch_size=64, ema_decay=0.995, data_threads=0),
        checkpoint=Checkpoint(every=500),
    )


def published(size: str) -> Denoising:
    """As in the paper: DDPM's linear table, learned variances, AdamW without decay, an average of 0.9999."""
    return Denoising(
        model=DiT(**SIZES[size], learned_variance=True),
        condition=Label(),
        space=Latents(scale=0.18215),
        process=DDPM(),
        prediction=LearnedVariance(),
        times=ChainSteps(),
        sampler=Sampler(solver=Ancestral(variance="learned"), steps=250, guidance=1.5, grid=ChainTimes()),
        data=Npz(),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=0, weight_decay=0.0, clip_norm=None),
        train=Train(steps=400_000, batch_size=256, ema_decay=0.9999, precision="bf16"),
    )


VARIANTS = {
    "nano": nano,
    "s_2": lambda: published("S/2"),
    "b_2": lambda: published("B/2"),
    "l_2": lambda: published("L/2"),
    "xl_2": lambda: published("XL/2"),
}

SMOKE = {
    "nano": {
        "train": "--model.depth 1 --model.num_heads 1 --model.head_dim 8 --train.batch_size 8 --sampler.steps 2",
        "sample": "--num 2 --steps 2",
        "evaluate": "--num 20 --steps 2",
    }
}
"""Words that make a variant small enough for the tests of every system, at each door."""
