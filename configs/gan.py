"""Generative adversarial networks, from a mixture of Gaussians in the plane to pictures.

toy         25 Gaussians in the plane; two perceptrons, non-saturating, with R1; a minute on a CPU
digits      scikit-learn's 8x8 digits; DCGAN, non-saturating, with R1 (Mescheder et al. 2018)
r3          the same with R3GAN's recipe: residual networks without norms, a relativistic pairing objective, R1 and R2
            (Huang et al. 2024, arXiv:2501.05441)
"""

from genjax.adversarial.objectives import NonSaturating, Relativistic
from genjax.adversarial.penalties import R1, R1R2
from genjax.data import Digits, TwentyFiveGaussians
from genjax.models.critics import DCGANCritic, MLPCritic, ResNetCritic
from genjax.models.generators import DCGANGenerator, MLPGenerator, ResNetGenerator
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.gan import GAN
from genjax.training.optimizer import Adam
from genjax.training.task import Train


def toy() -> GAN:
    adam = Adam(learning_rate=1e-3, warmup_steps=0, b1=0.5, b2=0.99, clip_norm=None)
    return GAN(
        generator=MLPGenerator(),
        critic=MLPCritic(),
        latent=2,
        objective=NonSaturating(),
        penalty=R1(weight=0.1),
        data=TwentyFiveGaussians(),
        optimizer=adam,
        critic_optimizer=adam,
        train=Train(steps=10_000, batch_size=256, ema_decay=0.999, data_threads=0, log_every=500,
                    validate_every=2000, sample_every=2000),
        checkpoint=Checkpoint(every=2000),
    )  # fmt: skip


def digits() -> GAN:
    adam = Adam(learning_rate=1e-3, warmup_steps=0, b1=0.0, b2=0.99, clip_norm=None)
    return GAN(
        generator=DCGANGenerator(),
        critic=DCGANCritic(),
        penalty=R1(weight=0.5),
        data=Digits(),
        optimizer=adam,
        critic_optimizer=adam,
        train=Train(steps=4000, batch_size=64, ema_decay=0.999, data_threads=0),
    )


def r3() -> GAN:
    adam = Adam(learning_rate=5e-4, warmup_steps=0, b1=0.0, b2=0.99, clip_norm=None)
    return GAN(
        generator=ResNetGenerator(width=16),
        critic=ResNetCritic(width=16),
        objective=Relativistic(),
        penalty=R1R2(weight=0.5),
        data=Digits(),
        optimizer=adam,
        critic_optimizer=adam,
        train=Train(steps=2000, batch_size=64, ema_decay=0.999, data_threads=0),
    )


VARIANTS = {"toy": toy, "digits": digits, "r3": r3}

SMOKE = {
    "toy": {"train": "--train.batch_size 8", "sample": "--num 20", "evaluate": "--num 50"},
    "digits": {
        "train": "--generator.width 8 --critic.width 8 --train.batch_size 8 --generator_every 2",
        "sample": "--num 3 --interpolate 2 --truncation 0.7",
        "evaluate": "--num 20",
    },
    "r3": {
        "train": "--generator.width 16 --critic.width 16 --train.batch_size 8",
        "sample": "--num 2",
        "evaluate": "--num 20",
    },
}
"""Words that make a variant small enough for the tests of every system, at each door."""
