"""Denoising diffusion probabilistic models on scikit-learn's 8x8 digits, without labels.

digits             the linear table of 1,000 steps, eps, ancestral sampling (Ho et al. 2020, arXiv:2006.11239)
learned_variance   the cosine table, the variance learned by the hybrid loss (Nichol and Dhariwal 2021, 2102.09672)
"""

from dataclasses import replace

from genjax.data import Digits
from genjax.diffusion.grids import ChainTimes
from genjax.diffusion.learned_variance import LearnedVariance
from genjax.diffusion.predictions import Eps
from genjax.diffusion.processes import DDPM
from genjax.diffusion.solvers import Ancestral
from genjax.diffusion.times import ChainSteps
from genjax.models.unet import UNet
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.conditions import Nothing
from genjax.tasks.denoising import Denoising, Sampler
from genjax.training.optimizer import AdamW
from genjax.training.task import Train


def digits() -> Denoising:
    return Denoising(
        model=UNet(channels=1, widths=(32, 64), blocks=1, attention_levels=(1,), groups=8),
        condition=Nothing(),
        process=DDPM(),
        prediction=Eps(),
        times=ChainSteps(),
        sampler=Sampler(solver=Ancestral(), steps=1000, guidance=1.0, grid=ChainTimes(), clip_denoised=1.0),
        data=Digits(),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, decay="cosine", weight_decay=0.01),
        train=Train(steps=2000, batch_size=64, ema_decay=0.995, data_threads=0, sample_every=1000),
        checkpoint=Checkpoint(every=500),
    )


def learned_variance() -> Denoising:
    task = digits()
    return replace(
        task,
        model=task.model.clone(learned_variance=True),
        process=DDPM("cosine"),
        prediction=LearnedVariance(levels=17),
        sampler=replace(task.sampler, solver=Ancestral(variance="learned")),
    )


VARIANTS = {"digits": digits, "learned_variance": learned_variance}

_SMALL = "--model.widths 8 --model.attention_levels 0 --model.groups 4 --train.batch_size 8 --sampler.steps 2"
SMOKE = {name: {"train": _SMALL, "sample": "--num 2 --steps 2", "evaluate": "--num 20 --steps 2"} for name in VARIANTS}
"""Words that make a variant small enough for the tests of every system, at each door."""
