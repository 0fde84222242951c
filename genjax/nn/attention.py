"""Scaled dot-product attention: softmax(q k^T / sqrt(H)) v, in the layout of `jax.nn.dot_product_attention`."""

import jax
from jaxtyping import Array, Float


def attention(
    query: Float[Array, "B T N H"], key: Float[Array, "B S N H"], value: Float[Array, "B S N H"]
) -> Float[Array, "B T N H"]:
    """Full attention without a mask; logits and softmax in float32."""
    return jax.nn.dot_product_attention(query, key, value)
