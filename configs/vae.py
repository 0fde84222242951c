"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752): pictures become a few numbers.

digits      scikit-learn's 8x8 digits as 4 x 4 x 2 numbers; minutes on a CPU
emoji       colour emoji of 32 pixels as 8 x 8 x 4 numbers; minutes on a CPU
kl_f8       the published shape of Stable Diffusion 1, 2 and XL: 256 pixels as 32 x 32 x 4
kl_f8_16    that of Stable Diffusion 3: 32 x 32 x 16, without 1 x 1 convolutions

There is no perceptual loss in these (latent diffusion has LPIPS).
"""

from genjax.data import Digits, Emoji, Images
from genjax.models.autoencoder import SIZES, Autoencoder
from genjax.models.patch_critic import PatchCritic
from genjax.quantisation.posterior import Posterior
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.tokeniser import Tokeniser
from genjax.training.optimizer import Adam
from genjax.training.task import Train

SMALL = dict(blocks=1, moments=True, groups=8)
ADAM = Adam(learning_rate=1e-3, warmup_steps=50, decay="cosine", b1=0.5, b2=0.9)
CRITIC_ADAM = Adam(learning_rate=5e-4, warmup_steps=0, b1=0.5, b2=0.9)


def digits() -> Tokeniser:
    return Tokeniser(
        model=Autoencoder(image_channels=1, widths=(16, 32), z_channels=32, code_channels=2, **SMALL),
        bottleneck=Posterior(weight=1e-3),
        critic=PatchCritic(width=16, layers=1, groups=8),
        adversarial_weight=0.1,
        adversarial_start=500,
        adversarial_ramp=500,
        data=Digits(),
        optimizer=ADAM,
        critic_optimizer=CRITIC_ADAM,
        train=Train(steps=2000, batch_size=64, ema_decay=0.995, data_threads=0),
        checkpoint=Checkpoint(every=500),
    )


def emoji() -> Tokeniser:
    return Tokeniser(
        model=Autoencoder(widths=(16, 32, 64), z_channels=64, code_channels=4, **SMALL),
        bottleneck=Posterior(weight=1e-3),
        critic=PatchCritic(width=16, layers=2, groups=8),
        adversarial_weight=0.1,
        adversarial_start=700,
        adversarial_ramp=700,
        data=Emoji(size=32),
        optimizer=ADAM,
        critic_optimizer=CRITIC_ADAM,
        train=Train(steps=2000, batch_size=32, ema_decay=0.998, data_threads=0),
        checkpoint=Checkpoint(every=500),
    )


def published(size: str) -> Tokeniser:
    """Latent diffusion's loss, whose critic counts from step 50,001 on at half weight; the schedule is ours."""
    adam = Adam(learning_rate=4.5e-6 * 96, warmup_steps=0, b1=0.5, b2=0.9, clip_norm=None)
    return Tokeniser(
        model=Autoencoder(**SIZES[size]),
        bottleneck=Posterior(),
        critic=PatchCritic(),
        adversarial_weight=0.5,
        adaptive_most=1e4 / (256 * 256 * 3),
        adversarial_start=50_001,
        data=Images(image_size=256, channels=3),
        optimizer=adam,
        critic_optimizer=adam,
        train=Train(steps=500_000, batch_size=96, ema_decay=None, precision="bf16"),
    )


VARIANTS = {
    "digits": digits,
    "emoji": emoji,
    "kl_f8": lambda: published("kl-f8"),
    "kl_f8_16": lambda: published("kl-f8-16"),
}

_SMALL = "--model.widths 8 16 --model.z_channels 4 --model.groups 2 --critic.width 4 --critic.groups 2"
SMOKE = {
    name: {
        "train": f"{_SMALL} --train.batch_size {batch} --adversarial_start 1",
        "sample": "--num 2 --interpolate 1",
        "evaluate": "",
    }
    for name, batch in (("digits", 8), ("emoji", 4))
}
"""Words that make a variant small enough for the tests of every system, at each door."""
