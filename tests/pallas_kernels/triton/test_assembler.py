"""Kernels are handed to JAX as code that the assembler of JAX's CUDA 12 understands."""

import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("jax_triton", reason="jax-triton is not installed")

PROGRAM = """
import re
import jax
import jax.numpy as jnp
from triton.backends.nvidia.compiler import CUDABackend
from pallas_kernels import attention

written = []
make = CUDABackend.make_ptx
CUDABackend.make_ptx = lambda *arguments: written.append(make(*arguments)) or written[-1]
x = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
run = jax.jit(lambda x: attention(x, x, x, implementation="triton"))
run.trace(x).lower(lowering_platforms=("cuda",))
print(*(re.search(r"\\.version (\\S+)", code)[1] for code in written))
"""


def test_the_code_is_for_cuda_12():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    (version,) = found.stdout.split()
    assert (8, 0) <= tuple(map(int, version.split("."))) < (9, 0)
