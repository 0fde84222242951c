"""Runs a kernel in Triton's interpreter on numpy arrays: the smallest tensor that it accepts, without torch.

It computes in float32 and float16. In bfloat16 its `tl.dot` multiplies the raw bits, so bfloat16 is refused.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_NAMES = {
    "float32": "fp32", "float16": "fp16", "int32": "i32", "uint32": "u32", "int64": "i64", "int8": "i8", "bool": "i1",
}  # fmt: skip


class Tensor:
    """A numpy array with the methods of a torch tensor that Triton's interpreter calls."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.dtype = _NAMES[array.dtype.name]

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> "_Storage":
        return _Storage(self.array)

    def new_empty(self, size, device=None) -> "Tensor":
        return Tensor(np.empty(0, self.array.dtype))

    def set_(self, storage: "_Storage", offset, size, stride) -> "Tensor":
        self.array = storage.array
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(x // self.array.itemsize for x in self.array.strides)


class _Storage:
    def __init__(self, array: np.ndarray):
        self.array = array

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def cpu(self) -> "_Storage":
        return self

    def copy_(self, other: "_Storage") -> None:
        if self.array is not other.array:
            np.copyto(self.array, other.array)


def interpret(
    kernel, inputs: Sequence, outputs: Sequence[jax.ShapeDtypeStruct], grid: tuple[int, ...], constants: dict
) -> list[jax.Array]:
    """The outputs of the kernel, whose memory holds NaN before: what a kernel leaves unwritten shows."""
    if any(getattr(x, "dtype", None) == jnp.bfloat16 for x in inputs):
        raise NotImplementedError("triton: its interpreter cannot multiply bfloat16; interpret in float32 or float16")

    def run(*arrays):
        arrays = iter(arrays)
        given = [x if isinstance(x, int) else Tensor(np.array(next(arrays), order="C")) for x in inputs]
        made = [np.full(x.shape, np.nan if jnp.issubdtype(x.dtype, jnp.floating) else -1, x.dtype) for x in outputs]
        kernel[grid](*given, *map(Tensor, made), **constants)
        return made

    return jax.pure_callback(run, list(outputs), *(x for x in inputs if not isinstance(x, int)))
