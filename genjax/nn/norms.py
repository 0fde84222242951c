"""Normalisations, with statistics in float32 whatever the compute type: parameters here, arithmetic in the kernels.

Samples do not see each other, nor do the heads of queries and keys: like attention the kernels run in islands where XLA
divides the program over a mesh (see island.py).
"""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from genjax.nn.island import on_own_part
from genjax.nn.linear import Axes, with_axes
from pallas_kernels.neighbours import norm

__all__ = ["LayerNorm", "RMSNorm", "layer_norm", "residual_layer_norm"]


def layer_norm(
    x: Float[Array, "*batch D"],
    weight: Float[Array, " D"] | None = None,
    bias: Float[Array, " D"] | None = None,
    *,
    scale: Float[Array, "..."] | None = None,
    shift: Float[Array, "..."] | None = None,
    epsilon: float = 1e-6,
) -> Float[Array, "*batch D"]:
    """LayerNorm of the last axis, its affine map and modulation: `pallas_kernels.neighbours.norm.layer_norm`."""
    return _run(norm.layer_norm, epsilon, x=x, weight=weight, bias=bias, scale=scale, shift=shift)


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
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch D"]]:
    """(x + gate * branch, its modulated LayerNorm): `pallas_kernels.neighbours.norm.residual_layer_norm`."""
    vectors = dict(gate=gate, weight=weight, bias=bias, scale=scale, shift=shift)
    return _run(norm.residual_layer_norm, epsilon, outputs=2, x=x, branch=branch, **vectors)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * scale + bias over the last axis (Ba, Kiros and Hinton 2016, arXiv:1607.06450)."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", with_axes(nn.initializers.ones, ("embed",)), (x.shape[-1],))
        bias = self.param("bias", with_axes(nn.initializers.zeros, ("embed",)), (x.shape[-1],))
        return layer_norm(x, scale, bias, epsilon=self.epsilon)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis (Zhang and Sennrich 2019); as qk-norm it runs over each head's width."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", with_axes(nn.initializers.ones, ("embed",)), (x.shape[-1],))
        return _run(norm.rms_norm, self.epsilon, x=x, weight=scale)


def _run(kernel: Callable, epsilon: float, *, outputs: int = 1, x: Array, **arrays: Array | None):
    arrays = {name: array for name, array in {"x": x, **arrays}.items() if array is not None}

    def run(*values):
        return kernel(**dict(zip(arrays, values, strict=True)), epsilon=epsilon)

    if x.ndim <= 2:  # There is no axis of samples.
        return run(*arrays.values())
    axes = {name: _axes(array, x) for name, array in arrays.items()}
    out_axes = axes["x"] if outputs == 1 else (axes["x"],) * outputs
    return on_own_part(run, tuple(arrays.values()), tuple(axes.values()), out_axes)


def _axes(array: Array, x: Array) -> Axes:
    """The names of the axes of x, or of what goes with it: a vector for all, one for each sample, or for each token."""
    if array.ndim == 1:
        return (None,)
    # Of four axes the third one holds the heads of a query, or columns of an image, which may be divided like heads.
    middle = (None, "heads") if array.ndim == x.ndim == 4 else (None,) * (array.ndim - 2)
    return ("batch", *middle, None)
