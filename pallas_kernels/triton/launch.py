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

from pallas_kernels.triton.config import Config
from pallas_kernels.triton.interpret import interpret

HOPPER = 90
"""Compute capability that is lowered for where no GPU is present."""


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
        """The outputs. Raises NotImplementedError where Triton or jax-triton is not installed."""
        if interpreted():
            return interpret(self.kernel, self.inputs, self.outputs, self.grid, self.constants)
        call = _triton_call()
        accepted = inspect.signature(call).parameters
        shapes = "out_type" if "out_type" in accepted else "out_shape"  # jax-triton 0.4, 0.3
        fusion = {"enable_fp_fusion": True}
        return call(
            *self.inputs,
            kernel=self.kernel,
            grid=self.grid,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
            compute_capability=None if jax.default_backend() == "gpu" else HOPPER,
            **{shapes: list(self.outputs)},
            **(fusion if "enable_fp_fusion" in accepted else {"backend_options": fusion}),
            **self.constants,
        )


def interpreted() -> bool:
    """Whether Triton was imported with TRITON_INTERPRET=1."""
    try:
        import triton
    except ImportError as error:
        raise NotImplementedError("triton: it is not installed; pip install 'genjax[cuda]' installs it") from error
    return triton.knobs.runtime.interpret


def _triton_call():
    try:
        import jax_triton
    except ImportError as error:
        raise NotImplementedError(
            "triton: jax-triton or the CUDA part of JAX is not installed; pip install 'genjax[cuda]' installs both"
        ) from error
    return jax_triton.triton_call
