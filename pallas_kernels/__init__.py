"""Attention and its neighbours for JAX: exact, memory-lean, with every derivative, on CPU and GPU.

Knows nothing of genjax and can be used alone: `from pallas_kernels import attention`.
"""

from pallas_kernels.dispatch.api import attention, scheduled
from pallas_kernels.dot_product_attention.mask import Mask

__all__ = ["Mask", "attention", "scheduled"]
