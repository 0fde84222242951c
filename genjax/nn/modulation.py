"""adaLN-Zero: a condition shifts, scales and gates every branch of a block (Peebles and Xie 2023, section 3.2).

    y = x + gate * branch(norm(x) * (1 + scale) + shift),      (shift, scale, gate) = Linear(SiLU(condition))

The linear layer starts at zero, so that a fresh block is the identity. norms.py applies what it gives.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from genjax.nn.island import lying_on
from genjax.nn.linear import Linear

__all__ = ["AdaLN"]


class AdaLN(nn.Module):
    """The `pieces` modulation vectors of a block, each (B, 1, width), from a condition (B, C)."""

    width: int
    pieces: int

    @nn.compact
    def __call__(self, condition: Float[Array, "B C"]) -> list[Float[Array, "B 1 D"]]:
        zeros = nn.initializers.zeros
        linear = Linear(self.pieces * self.width, kernel_init=zeros, name="linear")
        condition = lying_on(condition, ("batch", None))
        vectors_BxPxD = linear(nn.silu(condition)).reshape(-1, self.pieces, self.width)
        return [vectors_BxPxD[:, i, None] for i in range(self.pieces)]
