r"""LayerNorm and RMSNorm, with what stands before and after them in a transformer, in one pass over the tokens.

    stream = x + gate * branch                                       gated residual (optional)
    n      = (stream - mean) / sqrt(variance + epsilon)              LayerNorm (Ba et al. 2016, arXiv:1607.06450)
    n      = stream / sqrt(mean(stream^2) + epsilon)                 RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467)
    out    = (n * weight + bias) * (1 + scale) + shift               adaLN (Peebles and Xie 2023, arXiv:2212.09748, 3.2)

Statistics are taken in float32 (float64 for float64), over the last axis; results have the dtype of x. The norm reads
the stream as it is stored, after rounding. Nothing but operands and results is kept for the derivatives: with
u = dout * a, where out = n * a + c, and r = 1 / sqrt(...),

    dstream = r (u - mean(u) - n mean(u n))        (RMSNorm: without mean(u))       da = dout * n       dc = dout
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.derivatives import Arrays, Fused, Rules
from pallas_kernels.neighbours.implementation import Implementation, array_obstacle, choose
from pallas_kernels.neighbours.recomputed import recomputed

LONGEST = 16384
"""Bytes of the longest row that the Triton form takes: a program holds a whole row, and more like it, in registers."""


@dataclass(frozen=True)
class Settings:
    """What is static in a norm."""

    kind: Literal["layer", "rms"]
    epsilon: float
    one_plus: bool = False
    """Whether n is multiplied by 1 + multiplier, not by the multiplier."""


def layer_norm(
    x: Float[Array, "*batch D"],
    weight: Float[Array, " D"] | None = None,
    bias: Float[Array, " D"] | None = None,
    *,
    scale: Float[Array, "..."] | None = None,
    shift: Float[Array, "..."] | None = None,
    epsilon: float = 1e-6,
    implementation: Implementation | None = None,
) -> Float[Array, "*batch D"]:
    """LayerNorm of the last axis, its affine map, and the modulation that follows it; dtype of x.

    For x (B, ..., D), `scale` and `shift` are (B, D) or (B, 1, D), the same for all tokens of a sample, or (B, ..., D),
    one for each token; 1 stands for B where all samples share them. Raises ValueError for any other shape, and
    NotImplementedError where `implementation` cannot do it.
    """
    settings = Settings("layer", epsilon)
    return _norm(x, None, None, weight, bias, scale, shift, settings, implementation)[-1]


def rms_norm(
    x: Float[Array, "*batch D"],
    weight: Float[Array, " D"] | None = None,
    *,
    scale: Float[Array, "..."] | None = None,
    shift: Float[Array, "..."] | None = None,
    epsilon: float = 1e-6,
    implementation: Implementation | None = None,
) -> Float[Array, "*batch D"]:
    """RMSNorm of the last axis, its weight, and the modulation that follows it; shapes as in `layer_norm`."""
    settings = Settings("rms", epsilon)
    return _norm(x, None, None, weight, None, scale, shift, settings, implementation)[-1]


def residual_layer_norm(
    x: Float[Array, "*batch D"],
    branch: Float[Array, "*batch D"],
    gate: Float[Array, "..."] | None = None,
    weight: Float[Array, " D"] | None = None,
    bias: Float[Array, " D"] | None = None,
    *,
    scale: Float[Array, "..."] | None = None,
    shift: Float[Array, "..."] | None = None,
    epsilon: float = 1e-6,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch D"]]:
    """(x + gate * branch, its modulated LayerNorm), both in the dtype of x; gate, scale, shift as in `layer_norm`.

    Without a gate the branch is added as it is.
    """
    settings = Settings("layer", epsilon)
    return _norm(x, branch, gate, weight, bias, scale, shift, settings, implementation)


def residual_rms_norm(
    x: Float[Array, "*batch D"],
    branch: Float[Array, "*batch D"],
    gate: Float[Array, "..."] | None = None,
    weight: Float[Array, " D"] | None = None,
    *,
    scale: Float[Array, "..."] | None = None,
    shift: Float[Array, "..."] | None = None,
    epsilon: float = 1e-6,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch D"]]:
    """(x + gate * branch, its modulated RMSNorm), both in the dtype of x; gate, scale, shift as in `layer_norm`."""
    settings = Settings("rms", epsilon)
    return _norm(x, branch, gate, weight, None, scale, shift, settings, implementation)


def _norm(x, branch, gate, weight, bias, scale, shift, settings, implementation):
    """(stream, out) with a branch, (out,) without: the problem in normal form, run, and back in the shape of x."""
    x = jnp.asarray(x)
    if branch is not None and branch.shape != x.shape:
        raise ValueError(f"branch has shape {branch.shape}, accepted is that of x, {x.shape}")
    given = dict(gate=gate, weight=weight, bias=bias, scale=scale, shift=shift)
    vectors = {name: _vector(name, v, x) for name, v in given.items()}
    settings = Settings(settings.kind, settings.epsilon, one_plus=scale is not None and weight is None)
    operands = {"x": x, "branch": branch}
    operands = {name: v.reshape(_tokens(x)) for name, v in operands.items() if v is not None}
    named = {"gate": vectors["gate"], "multiplier": _multiplier(**vectors), "offset": _offset(**vectors)}
    operands |= {name: v for name, v in named.items() if v is not None}

    obstacle = array_obstacle(*operands.values())
    if x.shape[-1] * x.dtype.itemsize > LONGEST:
        obstacle = f"rows of more than {LONGEST} bytes"
    implementation = choose(implementation, obstacle)
    return tuple(out.reshape(x.shape) for out in _FUSED(operands, settings, implementation))


def _tokens(x: jax.Array) -> tuple[int, int, int]:
    """x as (batch, tokens, width); without an axis of samples all rows are tokens of one sample."""
    batch = x.shape[0] if x.ndim > 2 else 1
    return batch, x.size // max(batch * x.shape[-1], 1), x.shape[-1]


def _vector(name: str, vector: jax.Array | None, x: jax.Array) -> jax.Array | None:
    """A gate, weight, bias, scale or shift as (1|B, 1|T, D)."""
    if vector is None:
        return None
    batch, tokens, width = _tokens(x)
    accepted = {(width,): (1, 1, width)}
    if name not in ("weight", "bias"):
        if x.ndim <= 2:
            accepted |= {(1, width): (1, 1, width), x.shape: (1, tokens, width)}
        for samples in {1, batch} if x.ndim > 2 else {}:
            accepted[samples, width] = accepted[samples, *(1,) * (x.ndim - 2), width] = (samples, 1, width)
            accepted[samples, *x.shape[1:]] = (samples, tokens, width)
    if jnp.shape(vector) not in accepted:
        raise ValueError(f"{name} has shape {jnp.shape(vector)}, accepted are {', '.join(map(str, accepted))}")
    return jnp.reshape(vector, accepted[jnp.shape(vector)])


def _multiplier(weight, scale, **others):
    if weight is None or scale is None:
        return weight if scale is None else scale
    return _wide(weight) * (1 + _wide(scale))


def _offset(bias, scale, shift, **others):
    if bias is None or (scale is None and shift is None):
        return shift if bias is None else bias
    moved = _wide(bias) if scale is None else _wide(bias) * (1 + _wide(scale))
    return moved if shift is None else moved + _wide(shift)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# The normal form: x (1|B,T,D), optional branch (1|B,T,D), gate, multiplier and offset (1|B,1|T,D);
# outputs, with a branch, the stream (B,T,D), and always out (B,T,D).


def _shapes(operands: Arrays, settings: Settings) -> list[jax.ShapeDtypeStruct]:
    batch = max(v.shape[0] for v in operands.values())
    out = jax.ShapeDtypeStruct((batch, *operands["x"].shape[1:]), operands["x"].dtype)
    return [out, out] if "branch" in operands else [out]


def _forward(operands: Arrays, settings: Settings) -> list[jax.Array]:
    out = _shapes(operands, settings)[-1]
    x = jnp.broadcast_to(operands["x"], out.shape)
    if "branch" in operands:
        gate = _wide(operands["gate"]) if "gate" in operands else 1
        x = (_wide(x) + gate * _wide(operands["branch"])).astype(out.dtype)
    n = _wide(x)
    if settings.kind == "layer":
        n = n - n.mean(-1, keepdims=True)
    n = n * jax.lax.rsqrt(jnp.square(n).mean(-1, keepdims=True) + settings.epsilon)
    if "multiplier" in operands:
        n = n * (_wide(operands["multiplier"]) + settings.one_plus)
    if "offset" in operands:
        n = n + _wide(operands["offset"])
    n = n.astype(out.dtype)
    return [x, n] if "branch" in operands else [n]


_TRITON = Rules.of_modules(*3 * ["pallas_kernels.neighbours.norm_triton"])
_XLA = recomputed(_forward)
_FUSED = Fused("norm", {"xla": _XLA, "triton": _TRITON}, second_order=_XLA, shapes=_shapes)
