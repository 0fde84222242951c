"""Second stages (Esser et al. 2021, arXiv:2012.09841, section 3.2): pictures from the ids of a tokeniser.

ar          scikit-learn's 8x8 digits from 4 x 4 ids, one after the other, by the transformer of GPT-2
maskgit     the same ids in eight steps (Chang et al. 2022, arXiv:2202.04200)

Both stand on vqgan-digits, which ships: configs/vqgan.py:digits makes it. Minutes on a CPU.
"""

from genjax.data import Digits
from genjax.models.autoencoder import Autoencoder
from genjax.models.gpt import GPT
from genjax.quantisation.vector import AverageVQ
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.autoregressive import Autoregressive
from genjax.tasks.first_stage import FirstStage
from genjax.tasks.masked_generation import MaskedGeneration
from genjax.tasks.token_sampling import AutoregressiveSampler, MaskedSampler
from genjax.training.optimizer import AdamW
from genjax.training.task import Train

VQGAN_DIGITS = FirstStage(
    path="vqgan-digits",
    model=Autoencoder(image_channels=1, widths=(16, 32), blocks=1, z_channels=32, code_channels=4, groups=8),
    bottleneck=AverageVQ(size=64, width=4),
)
CODES, CLASSES, PLACES = 64, 11, 16  # one class is the null

COMMON = dict(
    data=Digits(),
    first_stage=VQGAN_DIGITS,
    optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, decay="cosine", weight_decay=0.1, b2=0.95),
    train=Train(steps=2000, batch_size=64, ema_decay=0.995, data_threads=0),
    checkpoint=Checkpoint(every=500),
)


def ar() -> Autoregressive:
    return Autoregressive(
        model=GPT(vocabulary=CODES + CLASSES, positions=1 + PLACES, width=64, depth=3, num_heads=4),
        sampler=AutoregressiveSampler(guidance=1.25),
        corruption=0.1,
        **COMMON,
    )


def maskgit() -> MaskedGeneration:
    return MaskedGeneration(
        model=GPT(vocabulary=CODES + CLASSES + 1, positions=1 + PLACES, width=64, depth=3, num_heads=4, causal=False),
        sampler=MaskedSampler(steps=8, guidance=1.5, choice_temperature=10.0),
        **COMMON,
    )


VARIANTS = {"ar": ar, "maskgit": maskgit}

_SMALL = "--model.depth 1 --model.width 32 --model.num_heads 2 --train.batch_size 8"
SMOKE = {
    "ar": {"train": _SMALL, "sample": "--num 2 --sampler.guidance 1", "evaluate": "--num 20"},
    "maskgit": {"train": _SMALL, "sample": "--num 2 --sampler.steps 2", "evaluate": "--num 20"},
}
"""Words that make a variant small enough for the tests of every system, at each door."""
