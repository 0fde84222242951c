"""VQGAN (Esser et al. 2021, arXiv:2012.09841): pictures become ids of a codebook, and are drawn from them again.

digits      scikit-learn's 8x8 digits as 4 x 4 ids of 64: 96 bits; minutes on a CPU
emoji       colour emoji of 32 pixels as 8 x 8 ids of 1,024: 640 bits of 24,576; minutes on a CPU
fsq         the same with 1,000 codes of finite scalars
lfq         the same with 1,024 codes of signs
rvq         the same with sums of two of 32 codes
f16         the published shape for photographs of 256 pixels, 16 x 16 ids of 1,024; the schedule is ours

There is no perceptual loss in these (VQGAN has LPIPS): what pixels do not say is left to the critic. Nor is there an
average of the parameters: a codebook of running means goes with the encoder as it is.
"""

from genjax.data import Digits, Emoji, Images
from genjax.models.autoencoder import SIZES, Autoencoder
from genjax.models.patch_critic import PatchCritic
from genjax.quantisation.finite_scalar import FSQ
from genjax.quantisation.lookup_free import LFQ
from genjax.quantisation.quantiser import Quantiser
from genjax.quantisation.residual import Residual
from genjax.quantisation.vector import VQ, AverageVQ
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.tokeniser import Tokeniser
from genjax.training.optimizer import Adam
from genjax.training.task import Train

ADAM = Adam(learning_rate=1e-3, warmup_steps=50, decay="cosine", b1=0.5, b2=0.9)
CRITIC_ADAM = Adam(learning_rate=5e-4, warmup_steps=0, b1=0.5, b2=0.9)


def digits() -> Tokeniser:
    return Tokeniser(
        model=Autoencoder(image_channels=1, widths=(16, 32), blocks=1, z_channels=32, code_channels=4, groups=8),
        bottleneck=AverageVQ(size=64, width=4),
        critic=PatchCritic(width=16, layers=1, groups=8),
        adversarial_weight=0.1,
        adversarial_start=500,
        adversarial_ramp=500,
        data=Digits(),
        optimizer=ADAM,
        critic_optimizer=CRITIC_ADAM,
        train=Train(steps=2000, batch_size=64, ema_decay=None, data_threads=0),
        checkpoint=Checkpoint(every=500),
    )


def emoji(bottleneck: Quantiser) -> Tokeniser:
    return Tokeniser(
        model=Autoencoder(widths=(16, 32, 64), blocks=1, z_channels=64, code_channels=bottleneck.width, groups=8),
        bottleneck=bottleneck,
        critic=PatchCritic(width=16, layers=2, groups=8),
        adversarial_weight=0.1,
        adversarial_start=700,
        adversarial_ramp=700,
        data=Emoji(size=32),
        optimizer=ADAM,
        critic_optimizer=CRITIC_ADAM,
        train=Train(steps=2000, batch_size=32, ema_decay=None, data_threads=0),
        checkpoint=Checkpoint(every=500),
    )


def f16() -> Tokeniser:
    """The published shape of ImageNet; beta where the paper has it."""
    adam = Adam(learning_rate=4.5e-6 * 96, warmup_steps=0, b1=0.5, b2=0.9, clip_norm=None)
    return Tokeniser(
        model=Autoencoder(**SIZES["vqgan-f16"]),
        bottleneck=VQ(),
        critic=PatchCritic(),
        adversarial_start=250_001,
        data=Images(image_size=256, channels=3),
        optimizer=adam,
        critic_optimizer=adam,
        train=Train(steps=1_000_000, batch_size=96, ema_decay=None, precision="bf16"),
    )


VARIANTS = {
    "digits": digits,
    "emoji": lambda: emoji(AverageVQ(size=1024, width=8)),
    "fsq": lambda: emoji(FSQ((8, 5, 5, 5))),
    "lfq": lambda: emoji(LFQ(bits=10)),
    "rvq": lambda: emoji(Residual(AverageVQ(size=32, width=8), depth=2)),
    "f16": f16,
}

_SMALL = "--model.widths 8 16 --model.z_channels 4 --model.groups 2 --critic.width 4 --critic.groups 2"
_DOORS = {"sample": "--num 2 --interpolate 1", "evaluate": ""}
SMOKE = {"digits": {"train": f"{_SMALL} --train.batch_size 8 --adversarial_start 1 --adversarial_ramp 2"} | _DOORS} | {
    name: {"train": f"{_SMALL} --train.batch_size 4 --adversarial_start 1"} | _DOORS
    for name in ("emoji", "fsq", "lfq", "rvq")
}
"""Words that make a variant small enough for the tests of every system, at each door."""
