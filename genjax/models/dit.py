"""DiT, a transformer of image patches that time and class modulate (Peebles and Xie 2022, arXiv:2212.09748, section 3).

    c  = MLP(sinusoid(1000 t)) + table[label]                           what modulates every block (adaLN-Zero)
         + another MLP of t - r, likewise                               where it is told how far a step goes (MeanFlow)
    h  = norm(x) * (1 + scale) + shift
    x += gate * proj(softmax(q k^T / sqrt(H)) v),                       q, k, v linear in h
    x += gate' * MLP(norm(x) * (1 + scale') + shift')

A fresh network says exactly zero. The table has one row more than there are classes: the last one is the null class,
which stands for no label, so that guidance has something to extrapolate from. The blocks are stacked and run by a scan.
"""

from dataclasses import field

from flax import linen as nn
from jaxtyping import Array, Float, Int

from genjax.errors import InputError
from genjax.models.labels import check_label
from genjax.models.mmdit import Projections, patchify, unpatchify
from genjax.models.sizes import check_sizes
from genjax.nn.attention import AttentionImplementation, attention
from genjax.nn.embeddings import sincos_2d, timestep_embedding
from genjax.nn.island import lying_on
from genjax.nn.linear import STACKED, Embedding, Linear
from genjax.nn.mlp import MLP, dense_init
from genjax.nn.modulation import AdaLN
from genjax.nn.norms import layer_norm, residual_layer_norm
from genjax.nn.remat import RematPolicy, rematerialise

__all__ = ["SIZES", "DiT", "DiTBlock"]

_DEPTHS_AND_HEADS = {"S": (12, 6, 64), "B": (12, 12, 64), "L": (24, 16, 64), "XL": (28, 16, 72)}

SIZES: dict[str, dict[str, int]] = {
    f"{name}/{patch_size}": dict(patch_size=patch_size, depth=depth, num_heads=num_heads, head_dim=head_dim)
    for name, (depth, num_heads, head_dim) in _DEPTHS_AND_HEADS.items()
    for patch_size in (2, 4, 8)
}
"""The published sizes (table 1): DiT(**SIZES["XL/2"])."""


class DiT(nn.Module):
    """Predicts the noise (or whatever it is trained for) of noisy images from time and class.

    `apply({"params": p}, x_t (B,H,W,C), t (B,) in [0,1], label (B,))` returns (B,H,W,C), or (B,H,W,2C) with learned
    variances; with `intervals` t is (B,2). A label is a class below `num_classes`, or `num_classes` itself: the null
    class. Raises InputError where H or W is no multiple of `patch_size`, where t is not of its shape, where a label is
    missing, and where there are no classes and it is not.
    """

    channels: int = 4
    """Channels of the image or latent."""
    patch_size: int = 2
    """Side of the square patch that becomes one token."""
    depth: int = 28
    """Number of blocks."""
    num_heads: int = 16
    """Attention heads; the width of the network is num_heads * head_dim."""
    head_dim: int = 72
    """Width of one head."""
    num_classes: int = 1000
    """Number of classes; 0: no label is taken."""
    learned_variance: bool = False
    """Whether 2C channels come out: the prediction, then what the log-variance follows (Nichol and Dhariwal 2021)."""
    intervals: bool = False
    """Whether it sees two numbers of time, t and how far from there a step goes, as `MeanVelocity` tells it."""
    time_scale: float = 1000.0
    """What t is multiplied by before it becomes sinusoids: 1 for times that are no fraction, such as EDM's c_noise."""
    frequency_shift: int = 0
    """Frequencies of time are 10000^(-i / (128 - shift)): 0 as published, 1 in diffusers' DiTTransformer2DModel."""
    norm_epsilon: float = 1e-6
    """Epsilon of the norm before each MLP: 1e-6 as published, 1e-5 in diffusers' configs. All others have 1e-6."""
    remat: RematPolicy = field(default="none", metadata={"may_change": True})
    """What each block keeps for the backward pass: none (keep all), dots, attention, full (keep its inputs only)."""
    attention_implementation: AttentionImplementation = field(default="auto", metadata={"may_change": True})
    """Which attention kernel to use; auto: the fastest of this machine."""

    @nn.compact
    def __call__(
        self, x_t: Float[Array, "B H W C"], t: Float[Array, "B *times"], label: Int[Array, " B"] | None = None
    ) -> Float[Array, "B H W C2"]:
        check_sizes(self, channels=1, patch_size=1, depth=1, num_heads=1, head_dim=1, num_classes=0)
        check_label(self.num_classes, label)
        width = self.num_heads * self.head_dim
        rows, columns = (self._tokens_along(size) for size in x_t.shape[1:3])

        x = patchify(x_t, self.patch_size)
        x = Linear(width, (None, "embed"), kernel_init=dense_init, name="x_embedder")(x)
        x = x + sincos_2d(rows, columns, width).astype(x.dtype)

        small = nn.initializers.normal(0.02)

        def embedded(t, name):
            sinusoid = timestep_embedding(self.time_scale * t, 256, frequency_shift=self.frequency_shift)
            return MLP(width, width, nn.silu, small, name=name)(lying_on(sinusoid.astype(x.dtype), ("batch", None)))

        if t.shape[1:] != ((2,) if self.intervals else ()):
            times = "two times" if self.intervals else "one time"
            raise InputError(f"with intervals = {self.intervals} a DiT sees {times} of a row, not t of shape {t.shape}")
        if self.intervals:
            condition = embedded(t[:, 0], "t_embedder") + embedded(t[:, 1], "interval_embedder")
        else:
            condition = embedded(t, "t_embedder")
        if label is not None:
            table = Embedding(self.num_classes + 1, width, embedding_init=small, name="y_embedder")
            condition = condition + table(label)

        stack = nn.scan(
            rematerialise(DiTBlock, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            metadata_params=STACKED,
        )
        block = stack(self.num_heads, self.head_dim, self.norm_epsilon, self.attention_implementation, name="blocks")
        x, _ = block(x, condition)

        shift, scale = AdaLN(width, 2, name="final_modulation")(condition)
        pixels = self.patch_size**2 * self.channels * (2 if self.learned_variance else 1)
        x = Linear(pixels, ("embed", None), kernel_init=nn.initializers.zeros, name="final_linear")(
            layer_norm(x, scale=scale, shift=shift)
        )
        return unpatchify(x, self.patch_size, rows)

    def _tokens_along(self, size: int) -> int:
        if size % self.patch_size:
            raise InputError(f"an image side of {size} is not a multiple of patch_size = {self.patch_size}")
        return size // self.patch_size


class DiTBlock(nn.Module):
    """One block over the tokens (B,T,D); see the module's equations. The identity at the start.

    The pieces of its modulation are, as in the released checkpoints, shift, scale and gate: of the attention, then of
    the MLP.
    """

    num_heads: int
    head_dim: int
    norm_epsilon: float = 1e-6
    attention_implementation: AttentionImplementation = "auto"

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B T D"], condition: Float[Array, "B D"]
    ) -> tuple[Float[Array, "B T D"], None]:
        width = self.num_heads * self.head_dim
        tokens = lying_on(tokens, ("batch", None, None))
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = AdaLN(width, 6, name="modulation")(condition)
        projections = Projections(self.num_heads, self.head_dim, qk_norm=False, name="attn")
        qkv = projections.queries_keys_values(layer_norm(tokens, scale=scale, shift=shift))
        branch = projections.output(attention(*qkv, implementation=self.attention_implementation))
        tokens, normed = residual_layer_norm(
            tokens, branch, gate, scale=scale_mlp, shift=shift_mlp, epsilon=self.norm_epsilon
        )
        return tokens + gate_mlp * MLP(4 * width, width, name="mlp")(normed), None
