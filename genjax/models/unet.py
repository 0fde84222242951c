"""The U-Net of diffusion models: DDPM's (Ho et al. 2020, appendix B) and ADM's (Dhariwal and Nichol 2021, section 3).

    down     at each level some residual blocks, perhaps each with attention, then the sides are halved
    middle   residual block, attention, residual block
    up       the mirror image, with one block more at each level: each takes, beside what comes from below, what one
             block (or halving, or the first convolution) on the way down has left
    time     c = MLP(sinusoid(1000 t)), plus an embedding of the condition; it modulates every residual block

DDPM adds c, and resamples by convolutions; ADM scales and shifts by c, resamples in residual blocks, has attention at
three levels and heads of a fixed width. Blocks and attentions add nothing at first, and a fresh network says exactly
zero. A U-Net's blocks are all of different shapes: no scan runs them.
"""

from dataclasses import field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, Num

from genjax.errors import InputError
from genjax.models.sizes import check_sizes
from genjax.nn.attention import AttentionImplementation
from genjax.nn.embeddings import timestep_embedding
from genjax.nn.image_blocks import Downsample, GroupNorm, ResidualBlock, SpatialAttention, Upsample
from genjax.nn.island import lying_on
from genjax.nn.linear import Conv, Embedding
from genjax.nn.mlp import MLP, dense_init
from genjax.nn.remat import RematPolicy, rematerialise

__all__ = ["SIZES", "UNet"]

_Resample = Literal["convolution", "residual"]
_Condition = Literal["class", "number", "vector"]

_DDPM: dict[str, Any] = dict(blocks=2, num_heads=1)
_ADM: dict[str, Any] = dict(
    head_dim=64,
    epsilon=1e-5,
    scale_shift=True,
    resample="residual",
    sines_first=False,
    frequency_shift=0,
    num_classes=1000,
    learned_variance=True,
)

SIZES: dict[str, dict[str, Any]] = {
    "ddpm-cifar10": _DDPM | dict(widths=(128, 256, 256, 256), attention_levels=(1,), dropout=0.1),
    "ddpm-256": _DDPM | dict(widths=(128, 128, 256, 256, 512, 512), attention_levels=(4,)),
    "adm-64": _ADM | dict(widths=(192, 384, 576, 768), blocks=3, attention_levels=(1, 2, 3), dropout=0.1),
    "adm-128": _ADM
    | dict(widths=(256, 256, 512, 768, 1024), blocks=2, attention_levels=(2, 3, 4), head_dim=None, num_heads=4),
    "adm-256": _ADM | dict(widths=(256, 256, 512, 512, 1024, 1024), blocks=2, attention_levels=(3, 4, 5)),
}
"""The published sizes, for images of 32 (CIFAR-10), 64, 128 or 256 pixels: UNet(**SIZES["adm-64"])."""


class UNet(nn.Module):
    """Predicts the noise (or whatever it is trained for) of noisy images from time, and perhaps from a condition.

    `apply({"params": p}, x_t (B,H,W,C), t (B,) in [0,1], condition or None)` returns (B,H,W,C), or (B,H,W,2C) with
    learned variances. With `dropout`, `dropout_keys=` (B,), a key for each sample, drop activations; without keys none
    are dropped. Raises InputError where a side is no multiple of 2^(levels - 1), where a condition is missing or there
    is none to take, where channels cannot be divided into groups or heads, and where a choice is not one of those told.
    """

    channels: int = 3
    """Channels of the image or latent."""
    widths: tuple[int, ...] = (128, 256, 256, 256)
    """Channels at each level, whole resolution first; the sides are halved from level to level."""
    blocks: int = 2
    """Residual blocks at each level on the way down; there is one more on the way up."""
    attention_levels: tuple[int, ...] = (1,)
    """Levels (0: whole resolution) at which attention follows each residual block."""
    middle_attention: bool = True
    """Whether there is attention between the two blocks in the middle."""
    head_dim: int | None = None
    """Width of one attention head; None: as `num_heads` say."""
    num_heads: int = 1
    """Number of heads of every attention, where no width of a head is given."""
    groups: int = 32
    """Groups of each norm."""
    epsilon: float = 1e-6
    """Of each norm."""
    scale_shift: bool = False
    """Whether the condition scales and shifts (ADM) or adds (DDPM)."""
    resample: _Resample = "convolution"
    """What halves and doubles the sides: a convolution (DDPM), or a residual block (ADM, after BigGAN)."""
    downsample_padding: int = 0
    """Zeros around what a convolution of stride 2 sees: 1 on each side; 0: below and to the right only (DDPM)."""
    dropout: float = 0.0
    """Share of activations that each residual block drops, in [0, 1)."""
    condition: _Condition = "class"
    """What it is: an index (B,); a real number (B,), embedded as time is; a vector (B, 4 widths[0]), added as it is."""
    num_classes: int = 0
    """Number of classes, where the condition is one; 0: none is taken."""
    null_class: bool = False
    """Whether index `num_classes` stands for no class; needed for guidance, and not in the published ADM."""
    learned_variance: bool = False
    """Whether 2C channels come out: the prediction, then what the log-variance follows (Nichol and Dhariwal 2021)."""
    time_scale: float = 1000.0
    """What t is multiplied by before it becomes sinusoids: 1 for times that are no fraction, such as EDM's c_noise."""
    sines_first: bool = True
    """Order of the sinusoids of time: sines, cosines (DDPM), or cosines, sines (ADM)."""
    frequency_shift: int = 1
    """Frequencies of time are 10000^(-i / (widths[0] / 2 - shift)): 1 in DDPM, 0 in ADM."""
    remat: RematPolicy = field(default="none", metadata={"may_change": True})
    """What each residual block and attention keeps for the backward pass: none (keep all), dots, attention, full."""
    attention_implementation: AttentionImplementation = field(default="auto", metadata={"may_change": True})
    """Which attention kernel to use; auto: the fastest of this machine."""

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        condition: Num[Array, "B *D"] | None = None,
        *,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B H W C2"]:
        self._check(x_t, condition)
        deepest = len(self.widths) - 1
        modulation = self._modulation(t, condition, x_t.dtype)
        count = 0

        def residual(x, features, name, resampling="none"):
            nonlocal count
            count += 1
            keys = None
            if self.dropout and dropout_keys is not None:
                keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(dropout_keys, count)
            block = rematerialise(ResidualBlock, self.remat, scanned=False)(
                features, self.groups, self.epsilon, self.scale_shift, resampling, self.dropout, name=name
            )
            return block(x, modulation, keys)

        def attended(x, name):
            return rematerialise(SpatialAttention, self.remat, scanned=False)(
                self.head_dim,
                self.num_heads,
                self.groups,
                self.epsilon,
                attention_implementation=self.attention_implementation,
                name=name,
            )(x)

        def resampled(x, way, name):
            if self.resample == "residual":
                return residual(x, x.shape[-1], name, way)
            return (Downsample(self.downsample_padding, name=name) if way == "down" else Upsample(name=name))(x)

        x = Conv(self.widths[0], (3, 3), (None, "embed"), kernel_init=dense_init, name="conv_in")(x_t)
        left = [x]
        for level, width in enumerate(self.widths):
            for i in range(self.blocks):
                x = residual(x, width, f"down_{level}_residual_{i}")
                if level in self.attention_levels:
                    x = attended(x, f"down_{level}_attention_{i}")
                left.append(x)
            if level < deepest:
                x = resampled(x, "down", f"down_{level}_resample")
                left.append(x)

        x = residual(x, self.widths[-1], "middle_residual_0")
        if self.middle_attention:
            x = attended(x, "middle_attention")
        x = residual(x, self.widths[-1], "middle_residual_1")

        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.blocks + 1):
                x = residual(jnp.concatenate([x, left.pop()], axis=-1), width, f"up_{level}_residual_{i}")
                if level in self.attention_levels:
                    x = attended(x, f"up_{level}_attention_{i}")
            if level:
                x = resampled(x, "up", f"up_{level}_resample")

        x = nn.silu(GroupNorm(self.groups, self.epsilon, name="norm_out")(x))
        channels, zeros = self.channels * (2 if self.learned_variance else 1), nn.initializers.zeros
        return Conv(channels, (3, 3), ("embed", None), kernel_init=zeros, name="conv_out")(x)

    def _modulation(self, t: Array, condition: Array | None, dtype) -> Array:
        """What modulates every residual block, (B, 4 widths[0])."""
        width = 4 * self.widths[0]

        def embedded(number, name):
            sinusoid = timestep_embedding(
                number, self.widths[0], frequency_shift=self.frequency_shift, sines_first=self.sines_first
            )
            return MLP(width, width, nn.silu, name=name)(lying_on(sinusoid.astype(dtype), ("batch", None)))

        modulation = embedded(self.time_scale * t, "t_embedder")
        if condition is None:
            return modulation
        if self.condition == "vector":
            return modulation + condition.astype(dtype)
        if self.condition == "number":
            return modulation + embedded(condition, "condition_embedder")
        normal = nn.initializers.normal(1.0)
        table = Embedding(self.num_classes + self.null_class, width, embedding_init=normal, name="condition_embedder")
        return modulation + table(condition)

    def _check(self, x_t: Array, condition: Array | None) -> None:
        check_sizes(self, channels=1, blocks=1, num_heads=1, groups=1, num_classes=0)
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths of UNet are positive, one for each level, not {self.widths}")
        levels = range(len(self.widths))
        if not set(self.attention_levels) <= set(levels):
            raise InputError(f"attention_levels of UNet lie in 0 to {levels[-1]}, not {self.attention_levels}")
        if self.head_dim is not None and self.head_dim < 1:
            raise InputError(f"head_dim of UNet is at least 1, or None, not {self.head_dim}")
        choices = (
            ("resample", get_args(_Resample)),
            ("condition", get_args(_Condition)),
            ("downsample_padding", (0, 1)),
        )
        for name, accepted in choices:
            if getattr(self, name) not in accepted:
                told = " or ".join(map(str, accepted))
                raise InputError(f"{name} of UNet is {told}, not {getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout of UNet lies in [0, 1), not at {self.dropout}")
        for width in self.widths:
            if width % self.groups:
                raise InputError(f"a width of {width} channels cannot be divided into {self.groups} groups")
        for side in x_t.shape[1:3]:
            if side % 2 ** levels[-1]:
                raise InputError(f"an image side of {side} cannot be halved {levels[-1]} times")
        takes = self.condition != "class" or self.num_classes > 0
        if takes and condition is None:
            raise InputError(f"this UNet needs a {self.condition} for each image")
        if not takes and condition is not None:
            raise InputError("a UNet with num_classes = 0 takes no condition")
