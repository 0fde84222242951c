"""EDM on scikit-learn's 8x8 digits, by class (Karras et al. 2022, arXiv:2206.00364).

digits   preconditioned network, log-normal noise levels, Heun's method on Karras's grid
"""

from genjax.data import Digits
from genjax.diffusion.grids import KarrasSigmas
from genjax.diffusion.predictions import Preconditioned
from genjax.diffusion.processes import EDM
from genjax.diffusion.solvers import EDMHeun
from genjax.diffusion.times import LogNormal
from genjax.models.unet import UNet
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.conditions import Label
from genjax.tasks.denoising import Denoising, Sampler
from genjax.training.optimizer import AdamW
from genjax.training.task import Train


def digits() -> Denoising:
    return Denoising(
        model=UNet(
            channels=1,
            widths=(32, 64),
            blocks=1,
            attention_levels=(1,),
            groups=8,
            num_classes=10,
            null_class=True,
            time_scale=1.0,
        ),
        condition=Label(),
        process=EDM(),
        prediction=Preconditioned(sigma_data=0.75),  # of the digits' pixels
        times=LogNormal(),
        sampler=Sampler(solver=EDMHeun(), steps=18, guidance=1.0, grid=KarrasSigmas()),
        data=Digits(),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, decay="cosine", weight_decay=0.01),
        train=Train(steps=2000, batch_size=64, ema_decay=0.995, data_threads=0),
        checkpoint=Checkpoint(every=500),
    )


VARIANTS = {"digits": digits}

SMOKE = {
    "digits": {
        "train": "--model.widths 8 --model.attention_levels 0 --model.groups 4 --train.batch_size 8 --sampler.steps 2",
        "sample": "--num 2 --steps 2",
        "evaluate": "--num 20 --steps 2",
    }
}
"""Words that make a variant small enough for the tests of every system, at each door."""
