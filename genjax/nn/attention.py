"""Scaled dot-product attention by an implementation that the config names: the networks' door to the kernels."""

from typing import Literal

from jaxtyping import Array, Float

import pallas_kernels

AttentionImplementation = Literal["auto", "xla", "cudnn", "triton", "mosaic"]
"""`auto`: the fastest proven one of this machine that does exactly what is asked; docs/kernels.md has the table."""


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    *,
    implementation: AttentionImplementation = "auto",
    **options,
) -> Float[Array, "B T N V"]:
    """softmax(q k^T / sqrt(H)) v; the options are those of `pallas_kernels.attention` (masks, bias, windows, ...)."""
    chosen = None if implementation == "auto" else implementation
    return pallas_kernels.attention(query, key, value, implementation=chosen, **options)
