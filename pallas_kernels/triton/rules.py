"""The implementation `triton` of attention. Its kernels are imported when first called, for Triton is optional."""

from pallas_kernels.derivatives import Rules

RULES = Rules.of_modules(*(f"pallas_kernels.triton.{rule}" for rule in ("forward", "tangent", "backward")))
