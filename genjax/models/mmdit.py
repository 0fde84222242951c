"""MM-DiT, the network of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206, section 4 and figure 2).

Image and text tokens are two streams with weights of their own that meet in one joint attention:

    c   = MLP(sinusoid(1000 t)) + MLP(pooled text)                      what modulates every block (adaLN-Zero)
    h_s = norm(s) * (1 + scale_s) + shift_s                             for each stream s in (context, image)
    a   = softmax([q_ctx, q_img] [k_ctx, k_img]^T / sqrt(H)) [v_ctx, v_img]
    s  += gate_s * proj_s(a_s);     s += gate'_s * MLP_s(norm(s) * (1 + scale'_s) + shift'_s)

In the last block the context only gives keys, values and queries ("pre-only"). SD3.5 adds RMS norm to queries and keys,
and in the first `dual_attention_layers` blocks of its medium size a second attention of the image over itself, which
reads the same norm under a modulation of its own. Blocks of one kind are stacked and run by a scan.
"""

from dataclasses import field

import einops
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from genjax.models.sizes import check_sizes
from genjax.nn.attention import AttentionImplementation, attention
from genjax.nn.embeddings import sincos_2d_centre_crop, timestep_embedding
from genjax.nn.island import lying_on
from genjax.nn.linear import STACKED, Linear
from genjax.nn.mlp import MLP, dense_init
from genjax.nn.modulation import AdaLN
from genjax.nn.norms import RMSNorm, layer_norm, residual_layer_norm
from genjax.nn.remat import RematPolicy, rematerialise

__all__ = ["JointBlock", "MMDiT", "Projections", "Stream", "patchify", "unpatchify"]


class MMDiT(nn.Module):
    """Predicts the velocity (or whatever it is trained for) of noisy images from time and text.

    `apply({"params": p}, x_t (B,H,W,C), t (B,) in [0,1], context (B,L,context_dim), pooled (B,pooled_dim))` returns
    (B,H,W,C). H and W are multiples of `patch_size`; raises ValueError where they are not.
    """

    channels: int = 16
    """Channels of the image or latent."""
    patch_size: int = 2
    """Side of the square patch that becomes one token."""
    depth: int = 24
    """Number of joint blocks, the pre-only last one included."""
    num_heads: int = 24
    """Attention heads; the width of the network is num_heads * head_dim."""
    head_dim: int = 64
    """Width of one head."""
    qk_norm: bool = True
    """RMS norm of queries and keys (SD3.5)."""
    dual_attention_layers: int = 0
    """Number of first blocks with a second, image-only attention (13 in SD3.5-medium)."""
    pos_embed_max_size: int = 192
    """Side of the largest grid of tokens."""
    pos_embed_base_size: int = 64
    """Position units along that side: neighbouring tokens are base size / max size apart."""
    remat: RematPolicy = field(default="none", metadata={"may_change": True})
    """What each block keeps for the backward pass: none (keep all), dots, attention, full (keep its inputs only)."""
    attention_implementation: AttentionImplementation = field(default="auto", metadata={"may_change": True})
    """Which attention kernel to use; auto: the fastest of this machine."""

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        context: Float[Array, "B L Dc"],
        pooled: Float[Array, "B Dp"],
    ) -> Float[Array, "B H W C"]:
        check_sizes(self, patch_size=1, depth=1, num_heads=1, head_dim=1, dual_attention_layers=0)
        check_sizes(self, pos_embed_max_size=1, pos_embed_base_size=1)
        width = self.num_heads * self.head_dim
        rows, columns = (self._tokens_along(size) for size in x_t.shape[1:3])

        x = patchify(x_t, self.patch_size)
        x = Linear(width, (None, "embed"), kernel_init=dense_init, name="x_embedder")(x)
        positions = sincos_2d_centre_crop(
            rows, columns, width, max_size=self.pos_embed_max_size, base_size=self.pos_embed_base_size
        )
        x = x + positions.astype(x.dtype)
        context = Linear(width, (None, "embed"), kernel_init=dense_init, name="context_embedder")(context)

        sinusoid = lying_on(timestep_embedding(1000 * t, 256).astype(x.dtype), ("batch", None))
        small = nn.initializers.normal(0.02)
        condition = MLP(width, width, nn.silu, small, name="t_embedder")(sinusoid)
        condition = condition + MLP(width, width, nn.silu, name="y_embedder")(pooled)

        sizes = (self.num_heads, self.head_dim, self.qk_norm, self.attention_implementation)
        dual = min(self.dual_attention_layers, self.depth - 1)
        for name, length, dual_attention in [("dual_blocks", dual, True), ("blocks", self.depth - 1 - dual, False)]:
            if length:
                stack = nn.scan(
                    rematerialise(JointBlock, self.remat),
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=nn.broadcast,
                    length=length,
                    metadata_params=STACKED,
                )
                block = stack(*sizes, dual_attention, name=name)
                (context, x), _ = block((context, x), condition)
        dual_last = self.dual_attention_layers >= self.depth
        last = JointBlock(*sizes, dual_attention=dual_last, pre_only=True, name="last_block")
        (_, x), _ = last((context, x), condition)

        shift, scale = AdaLN(width, 2, name="final_modulation")(condition)
        pixels, zeros = self.patch_size**2 * self.channels, nn.initializers.zeros
        x = Linear(pixels, ("embed", None), kernel_init=zeros, name="final_linear")(
            layer_norm(x, scale=scale, shift=shift)
        )
        return unpatchify(x, self.patch_size, rows)

    def _tokens_along(self, size: int) -> int:
        if size % self.patch_size:
            raise ValueError(f"an image side of {size} is not a multiple of patch_size = {self.patch_size}")
        return size // self.patch_size


class JointBlock(nn.Module):
    """One block over the carry (context (B,L,D), image tokens (B,T,D)); see the module's equations."""

    num_heads: int
    head_dim: int
    qk_norm: bool
    attention_implementation: AttentionImplementation = "auto"
    dual_attention: bool = False
    pre_only: bool = False

    def setup(self):
        sizes = (self.num_heads, self.head_dim, self.qk_norm, self.attention_implementation)
        self.context = Stream(*sizes, pre_only=self.pre_only)
        self.image = Stream(*sizes, dual_attention=self.dual_attention)

    def __call__(self, streams, condition):
        context, image = (lying_on(tokens, ("batch", None, None)) for tokens in streams)
        context_modulation = self.context.modulation(condition)
        image_modulation = self.image.modulation(condition)
        joint = zip(
            self.context.queries_keys_values(context, context_modulation),
            self.image.queries_keys_values(image, image_modulation),
            strict=True,
        )
        query, key, value = (jnp.concatenate(pair, axis=1) for pair in joint)
        attended = attention(query, key, value, implementation=self.attention_implementation)
        length = context.shape[1]
        if not self.pre_only:
            context = self.context.residuals(context, attended[:, :length], context_modulation)
        return (context, self.image.residuals(image, attended[:, length:], image_modulation)), None


class Stream(nn.Module):
    """The weights that one stream owns in a block: modulation, attention projections, MLP.

    The modulation's pieces are, in the order of the released checkpoints: shift, scale (all streams); gate of the
    attention, shift, scale and gate of the MLP (not pre-only); shift, scale and gate of the second attention (dual).
    """

    num_heads: int
    head_dim: int
    qk_norm: bool
    attention_implementation: AttentionImplementation = "auto"
    dual_attention: bool = False
    pre_only: bool = False

    def setup(self):
        width = self.num_heads * self.head_dim
        self.modulation = AdaLN(width, 2 if self.pre_only else 9 if self.dual_attention else 6)
        self.attn = Projections(self.num_heads, self.head_dim, self.qk_norm)
        if self.dual_attention:
            self.attn2 = Projections(self.num_heads, self.head_dim, self.qk_norm)
        if not self.pre_only:
            self.mlp = MLP(4 * width, width)

    def queries_keys_values(self, tokens, modulation):
        shift, scale = modulation[:2]
        return self.attn.queries_keys_values(layer_norm(tokens, scale=scale, shift=shift))

    def residuals(self, tokens, attended, modulation):
        _, _, gate, shift_mlp, scale_mlp, gate_mlp = modulation[:6]
        if self.dual_attention:
            tokens = tokens + self._second_attention(tokens, *modulation[6:])
        branch = self.attn.output(attended)
        tokens, normed = residual_layer_norm(tokens, branch, gate, scale=scale_mlp, shift=shift_mlp)
        return tokens + gate_mlp * self.mlp(normed)

    def _second_attention(self, tokens, shift, scale, gate):
        qkv = self.attn2.queries_keys_values(layer_norm(tokens, scale=scale, shift=shift))
        return gate * self.attn2.output(attention(*qkv, implementation=self.attention_implementation))


class Projections(nn.Module):
    """Linear maps into and out of an attention, with optional RMS norm of queries and keys over each head."""

    num_heads: int
    head_dim: int
    qk_norm: bool

    def setup(self):
        width = self.num_heads * self.head_dim
        self.qkv = Linear(3 * width, ("embed", "heads"), kernel_init=dense_init)
        self.proj = Linear(width, ("heads", "embed"), kernel_init=dense_init)
        if self.qk_norm:
            self.norm_q, self.norm_k = RMSNorm(), RMSNorm()

    def queries_keys_values(self, tokens: Float[Array, "B T D"]) -> tuple[Float[Array, "B T N H"], ...]:
        query, key, value = (
            part.reshape(*tokens.shape[:2], self.num_heads, self.head_dim)
            for part in jnp.split(self.qkv(tokens), 3, axis=-1)
        )
        return (self.norm_q(query), self.norm_k(key), value) if self.qk_norm else (query, key, value)

    def output(self, attended: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        return self.proj(attended.reshape(*attended.shape[:2], -1))


def patchify(image: Float[Array, "B H W C"], patch: int) -> Float[Array, "B T P"]:
    """Row-major patches, each flattened as (row, column, channel) inside the patch."""
    return einops.rearrange(image, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(tokens: Float[Array, "B T P"], patch: int, rows: int) -> Float[Array, "B H W C"]:
    """Inverse of `patchify` for a grid of `rows` rows of patches."""
    return einops.rearrange(tokens, "b (h w) (p q c) -> b (h p) (w q) c", h=rows, p=patch, q=patch)
