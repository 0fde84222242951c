"""Wasserstein GANs on 25 Gaussians in the plane: three ways to keep the critic 1-Lipschitz (docs/duality.md).

gp          gradient penalty (Gulrajani et al. 2017)
clip        weight clipping (Arjovsky et al. 2017)
sn          spectral norm (Miyato et al. 2018)
"""

from genjax.adversarial.constraints import Constraint, SpectralNorm, Unconstrained, WeightClipping
from genjax.adversarial.objectives import Wasserstein
from genjax.adversarial.penalties import GradientPenalty, NoPenalty, Penalty
from genjax.data import TwentyFiveGaussians
from genjax.models.critics import MLPCritic
from genjax.models.generators import MLPGenerator
from genjax.runs.checkpoints import Checkpoint
from genjax.tasks.gan import GAN
from genjax.training.optimizer import Adam
from genjax.training.task import Train


def wgan(penalty: Penalty, constraint: Constraint) -> GAN:
    adam = Adam(learning_rate=2e-3, warmup_steps=0, decay="cosine", b1=0.5, b2=0.9, clip_norm=None)
    return GAN(
        generator=MLPGenerator(),
        critic=MLPCritic(),
        latent=2,
        objective=Wasserstein(),
        penalty=penalty,
        constraint=constraint,
        generator_every=3,
        data=TwentyFiveGaussians(),
        optimizer=adam,
        critic_optimizer=adam,
        train=Train(steps=10_000, batch_size=256, ema_decay=0.99, data_threads=0, log_every=500,
                    validate_every=2500, sample_every=2500),
        checkpoint=Checkpoint(every=2500),
    )  # fmt: skip


VARIANTS = {
    "gp": lambda: wgan(GradientPenalty(weight=0.1), Unconstrained()),
    "clip": lambda: wgan(NoPenalty(), WeightClipping(limit=0.1)),
    "sn": lambda: wgan(NoPenalty(), SpectralNorm()),
}

SMOKE = {
    name: {"train": "--train.batch_size 8 --generator_every 2", "sample": "--num 20", "evaluate": "--num 50"}
    for name in VARIANTS
}
"""Words that make a variant small enough for the tests of every system, at each door."""
