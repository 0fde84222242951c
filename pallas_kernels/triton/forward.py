"""Attention forward: by the flash kernel, cut for training (flash.py) or for few queries over many keys (decode.py)."""

import jax

from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.triton import decode
from pallas_kernels.triton.config import choose
from pallas_kernels.triton.flash import launch_forward
from pallas_kernels.triton.problem import refuse


def forward(operands: Arrays, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """(out (B,T,N,V), lse (B,T,N)). Raises NotImplementedError for what the kernel cannot do."""
    refuse(operands)
    if decode.suits(operands):
        return decode.decode(operands, settings)
    out, lse = launch_forward(operands, settings, choose("forward", operands)).run()
    return out, lse
