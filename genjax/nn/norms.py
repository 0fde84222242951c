"""Normalisations, with statistics in float32 whatever the compute type: parameters here, arithmetic in the kernels."""

from flax import linen as nn
from jaxtyping import Array, Float

from pallas_kernels.neighbours.norm import layer_norm as layer_norm
from pallas_kernels.neighbours.norm import residual_layer_norm as residual_layer_norm
from pallas_kernels.neighbours.norm import rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis (Zhang and Sennrich 2019); as qk-norm it runs over each head's width."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return rms_norm(x, scale, epsilon=self.epsilon)
