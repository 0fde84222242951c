"""Score-based models as SDEs on scikit-learn's 8x8 digits, without labels (Song et al. 2021, arXiv:2011.13456).

ve      variance exploding: scores from a prior of deviation 10; a predictor with Langevin corrections
vp      variance preserving: DDPM in continuous time
subvp   a variance never above VP's, for likelihoods
"""

from genjax.data import Digits
from genjax.diffusion.grids import UniformTimes
from genjax.diffusion.predictions import Eps
from genjax.diffusion.process import Process
from genjax.diffusion.processes import VE, VP, SubVP
from genjax.diffusion.solvers import EulerMaruyama, ReverseDiffusion
from genjax.diffusion.solvers.reverse_sde import Langevin
from genjax.diffusion.times import Uniform
from genjax.models.unet import UNet
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.conditions import Nothing
from genjax.tasks.denoising import Denoising, Sampler
from genjax.training.optimizer import AdamW
from genjax.training.task import Train


def score_sde(process: Process, sampler: Sampler) -> Denoising:
    """Its score is learned as -eps / sigma, weighted by sigma^2 at every time: the plain loss of eps."""
    return Denoising(
        model=UNet(channels=1, widths=(32, 64), blocks=1, attention_levels=(1,), groups=8),
        condition=Nothing(),
        process=process,
        prediction=Eps(unit_inputs=True),
        times=Uniform(),
        sampler=sampler,
        data=Digits(),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, decay="cosine", weight_decay=0.01),
        train=Train(steps=2000, batch_size=64, ema_decay=0.995, data_threads=0, sample_every=1000),
        checkpoint=Checkpoint(every=500),
    )


def ve() -> Denoising:
    """Its largest deviation is the largest distance between two digits, 9.6 (Song and Ermon 2020, technique 1)."""
    solver = ReverseDiffusion(corrector=Langevin(snr=0.16))
    sampler = Sampler(solver=solver, steps=500, guidance=1.0, grid=UniformTimes(last=0.0))
    return score_sde(VE(sigma_max=10.0), sampler)


def vp() -> Denoising:
    sampler = Sampler(solver=EulerMaruyama(), steps=500, guidance=1.0, grid=UniformTimes(last=1e-3))
    return score_sde(VP(), sampler)


def subvp() -> Denoising:
    sampler = Sampler(solver=EulerMaruyama(), steps=500, guidance=1.0, grid=UniformTimes(last=1e-3))
    return score_sde(SubVP(), sampler)


VARIANTS = {"vp": vp, "subvp": subvp, "ve": ve}

_SMALL = "--model.widths 8 --model.attention_levels 0 --model.groups 4 --train.batch_size 8 --sampler.steps 2"
SMOKE = {name: {"train": _SMALL, "sample": "--num 2 --steps 2", "evaluate": "--num 20 --steps 2"} for name in VARIANTS}
"""Words that make a variant small enough for the tests of every system, at each door."""
