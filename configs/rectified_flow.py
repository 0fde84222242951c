"""Rectified flows on scikit-learn's 8x8 digits, by class (Liu et al. 2022, arXiv:2209.03003).

digits   straight paths from noise to data; times as in SD3
reflow   the same from pairs of noise and samples that a trained run of `digits` has drawn: straighter, for few steps

    python train.py --config configs/rectified_flow.py --workdir runs/flow
    python sample.py --workdir runs/flow --couples True --num 20000 --out out/couples
    python train.py --config configs/rectified_flow.py:reflow --train.start.path runs/flow \
        --data.path out/couples/couples.npz
"""

from dataclasses import replace

from genjax.data import Couples, Digits
from genjax.diffusion.grids import UniformTimes
from genjax.diffusion.predictions import Velocity
from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.solvers import Euler
from genjax.diffusion.times import LogitNormal, Uniform
from genjax.models.unet import UNet
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.conditions import Label
from genjax.tasks.couplings import Paired
from genjax.tasks.denoising import Denoising, Sampler
from genjax.training.optimizer import AdamW
from genjax.training.task import Train


def digits() -> Denoising:
    return Denoising(
        model=UNet(
            channels=1, widths=(32, 64), blocks=1, attention_levels=(1,), groups=8, num_classes=10, null_class=True
        ),
        condition=Label(),
        process=RectifiedFlow(),
        prediction=Velocity(),
        times=LogitNormal(),
        sampler=Sampler(solver=Euler(), steps=50, guidance=1.0, grid=UniformTimes()),
        data=Digits(),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, decay="cosine", weight_decay=0.01),
        train=Train(steps=2000, batch_size=64, ema_decay=0.995, data_threads=0),
        checkpoint=Checkpoint(every=500),
    )


def reflow() -> Denoising:
    """Uniform times: with pairs the loss is small everywhere, and one step needs both ends."""
    task = digits()
    return replace(
        task,
        coupling=Paired(),
        condition=Label(dropout=0.0),
        times=Uniform(),
        sampler=replace(task.sampler, steps=2),
        data=Couples(),
        optimizer=replace(task.optimizer, learning_rate=5e-4),
    )


VARIANTS = {"digits": digits, "reflow": reflow}

_SMALL = "--model.widths 8 --model.attention_levels 0 --model.groups 4 --train.batch_size 8 --sampler.steps 2"
SMOKE = {"digits": {"train": _SMALL, "sample": "--num 2 --steps 2", "evaluate": "--num 20 --steps 2"}}
"""Words that make a variant small enough for the tests of every system, at each door. (`reflow` needs couples.)"""
