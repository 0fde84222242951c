"""The one door to Triton: launches a `@triton.jit` kernel from JAX, on a GPU, or under Triton's interpreter.

On a GPU, and when lowering for one elsewhere, through jax-triton; its releases name some arguments differently, and
only this file knows. With TRITON_INTERPRET=1 in the environment before Triton is imported, the same kernel runs in
numpy on the CPU (see interpret.py).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import triton

from pallas_kernels.triton.config import Config
from pallas_kernels.triton.interpret import interpret

HOPPER = 90
"""Compute capability that is lowered for where no GPU is present."""
PTX = 85
"""Version of the code that is handed to JAX's assembler: of CUDA 12.6, the oldest that JAX takes. Triton would write
for the newest of the assemblers that it brings along itself, and JAX's would refuse that."""


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments. Its parameters come in this order: arrays, integers, outputs, `tl.constexpr`."""

    kernel: Any
    inputs: Sequence[jax.Array | int]
    outputs: Sequence[jax.ShapeDtypeStruct]
    grid: tuple[int, ...]
    config: Config
    constants: dict[str, Any]

    def run(self) -> list[jax.Array]:
        """The outputs. Raises NotImplementedError where jax-triton is not installed."""
        if interpreted():
            return interpret(self.kernel, self.inputs, self.outputs, self.grid, self.constants)
        call, outputs = _triton_call(), list(self.outputs)
        if "out_type" in inspect.signature(call).parameters:  # jax-triton 0.4
            options = dict(out_type=outputs, backend_options=compiler_options())
        else:  # 0.3
            write_for_cuda_12()
            options = dict(out_shape=outputs, enable_fp_fusion=True)
        return call(
            *self.inputs,
            kernel=self.kernel,
            grid=self.grid,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
            compute_capability=capability(),
            **options,
            **self.constants,
        )


def capability() -> int:
    """Compute capability of the GPU that kernels are for, such as 90."""
    if jax.default_backend() != "gpu":
        return HOPPER
    return int(float(jax.devices()[0].compute_capability) * 10)


def compiler_options() -> dict[str, Any]:
    """Of Triton's compiler."""
    return {"enable_fp_fusion": True} | ({"ptx_version": PTX} if capability() == HOPPER else {})


def write_for_cuda_12() -> None:
    """Triton writes what the assembler that it takes for Hopper understands: let that be its older one, of CUDA 12."""
    if capability() == HOPPER and hasattr(triton.knobs.nvidia, "ptxas_blackwell"):
        triton.knobs.nvidia.ptxas_blackwell = triton.knobs.nvidia.ptxas.path


def interpreted() -> bool:
    """Whether Triton was imported with TRITON_INTERPRET=1."""
    return triton.knobs.runtime.interpret


def _triton_call():
    try:
        import jax_triton
    except ImportError as error:
        raise NotImplementedError(
            "triton: jax-triton or the CUDA part of JAX is not installed; pip install 'genjax[cuda]' installs both"
        ) from error
    return jax_triton.triton_call
