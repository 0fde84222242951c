"""Two-layer perceptrons."""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from genjax.nn.linear import Linear

__all__ = ["MLP", "dense_init"]

dense_init = nn.initializers.xavier_uniform()
"""Initialiser of every linear layer of the diffusion transformers here (DiT: Xavier uniform, bias 0)."""


class MLP(nn.Module):
    """Linear - activation - Linear; nn.gelu is the tanh form, which DiT, SD3 and T5 use."""

    hidden: int
    out: int
    activation: Callable = nn.gelu
    kernel_init: Callable = dense_init
    out_init: Callable | None = None
    """Of the second layer, where it is another."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch out"]:
        x = Linear(self.hidden, ("embed", "mlp"), kernel_init=self.kernel_init, name="fc1")(x)
        out_init = self.out_init or self.kernel_init
        return Linear(self.out, ("mlp", "embed"), kernel_init=out_init, name="fc2")(self.activation(x))
