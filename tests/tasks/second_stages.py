"""Second stages of digits that compile in seconds, for the laws of all of them."""

from genjax.data import Digits
from genjax.models.autoencoder import Autoencoder
from genjax.models.gpt import GPT
from genjax.quantisation.residual import Residual
from genjax.quantisation.vector import VQ, AverageVQ
from genjax.tasks.autoregressive import Autoregressive
from genjax.tasks.first_stage import FirstStage
from genjax.tasks.masked_generation import MaskedGeneration
from genjax.training.task import Train

MODEL = Autoencoder(image_channels=1, widths=(4, 4), blocks=1, z_channels=4, code_channels=3, groups=2)
ONE = FirstStage(path="none", model=MODEL, bottleneck=AverageVQ(size=6, width=3))
SUM = FirstStage(path="none", model=MODEL, bottleneck=Residual(VQ(size=5, width=3), depth=2))
COMMON = dict(data=Digits(), train=Train(steps=2, batch_size=4, ema_decay=None))
SIZES = dict(width=8, depth=1, num_heads=2)

AR = Autoregressive(first_stage=ONE, model=GPT(vocabulary=6 + 11, positions=16, **SIZES), **COMMON)
AR_SUM = Autoregressive(first_stage=SUM, model=GPT(vocabulary=10 + 11, positions=32, **SIZES), **COMMON)
MASKED = MaskedGeneration(first_stage=ONE, model=GPT(vocabulary=6 + 12, positions=17, causal=False, **SIZES), **COMMON)
MASKED_SUM = MaskedGeneration(
    first_stage=SUM, model=GPT(vocabulary=10 + 12, positions=33, causal=False, **SIZES), **COMMON
)
