"""Classifiers of noised digits, which guide diffusion models (Dhariwal and Nichol 2021, arXiv:2105.05233, section 4).

digits   for the process of configs/ddpm.py, whose networks know no class

    python sample.py --workdir runs/ddpm --classifier runs/classifier --wanted three --classifier_scale 2
"""

from genjax.data import Digits
from genjax.diffusion.processes import DDPM
from genjax.diffusion.times import ChainSteps
from genjax.models.noisy_classifier import NoisyClassifier
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.noisy_classification import NoisyClassification
from genjax.training.optimizer import AdamW
from genjax.training.task import Train


def digits() -> NoisyClassification:
    return NoisyClassification(
        model=NoisyClassifier(num_classes=10, widths=(32, 64), blocks=1, attention_levels=(1,), groups=8),
        process=DDPM(),
        times=ChainSteps(),
        data=Digits(),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, decay="cosine", weight_decay=0.05),
        train=Train(steps=2000, batch_size=64, ema_decay=0.995, data_threads=0),
        checkpoint=Checkpoint(every=500),
    )


VARIANTS = {"digits": digits}

SMOKE = {
    "digits": {
        "train": "--model.widths 8 --model.attention_levels 0 --model.groups 4 --train.batch_size 8",
        "sample": "--num 2 --t 0.1",
        "evaluate": "",
    }
}
"""Words that make a variant small enough for the tests of every system, at each door."""
