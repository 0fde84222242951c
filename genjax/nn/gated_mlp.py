"""The gated perceptron of Llama: SwiGLU (Shazeer 2020, arXiv:2002.05202, equation 6)."""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from genjax.nn.linear import Linear

__all__ = ["GatedMLP"]


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x), without biases."""

    hidden: int
    out: int
    activation: Callable = nn.silu
    kernel_init: Callable = nn.initializers.lecun_normal()
    """Of the gate and of the way up."""
    down_init: Callable = nn.initializers.lecun_normal()
    """Of the way down, which ends in the residual stream."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch out"]:
        gate = Linear(self.hidden, use_bias=False, kernel_init=self.kernel_init, name="gate")(x)
        up = Linear(self.hidden, use_bias=False, kernel_init=self.kernel_init, name="up")(x)
        down = Linear(self.out, ("mlp", "embed"), use_bias=False, kernel_init=self.down_init, name="down")
        return down(self.activation(gate) * up)
