"""MeanFlow on scikit-learn's 8x8 digits, by class: a sample in one evaluation (Geng et al. 2025, arXiv:2505.13447).

digits   a small DiT that is told how far a step goes; no teacher, no pairs

    python train.py --config configs/meanflow.py --workdir runs/meanflow
    python sample.py --workdir runs/meanflow --steps 1
"""

from genjax.data import Digits
from genjax.diffusion.grids import UniformTimes
from genjax.diffusion.mean_velocity import MeanVelocity
from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.solvers import Jump
from genjax.diffusion.times import LogitNormal
from genjax.models.dit import DiT
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.conditions import Label
from genjax.tasks.denoising import Denoising, Sampler
from genjax.training.optimizer import AdamW
from genjax.training.task import Train


def digits() -> Denoising:
    return Denoising(
        model=DiT(
            channels=1,
            patch_size=2,
            depth=3,
            num_heads=2,
            head_dim=32,
            num_classes=10,
            intervals=True,
            time_scale=1.0,  # the loss has a slope in time, and sinusoids of 1000 t have one of 1000
            remat="attention",
        ),
        condition=Label(dropout=0.0),
        process=RectifiedFlow(),
        prediction=MeanVelocity(),
        times=LogitNormal(-0.4, 1.0),
        sampler=Sampler(solver=Jump(), steps=1, guidance=1.0, grid=UniformTimes()),
        data=Digits(),
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=100, decay="cosine", weight_decay=0.01),
        train=Train(steps=4000, batch_size=64, ema_decay=0.995, data_threads=0),
        checkpoint=Checkpoint(every=500),
    )


VARIANTS = {"digits": digits}

SMOKE = {
    "digits": {
        "train": "--model.depth 1 --model.num_heads 1 --model.head_dim 8 --train.batch_size 8",
        "sample": "--num 2 --steps 2",
        "evaluate": "--num 20 --steps 2",
    }
}
"""Words that make a variant small enough for the tests of every system, at each door."""
