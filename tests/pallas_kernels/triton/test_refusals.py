"""What the Triton kernels cannot do they refuse, in a sentence that says what can."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.triton.problem import refuse


def problem(width=64, dtypes=(jnp.bfloat16,) * 3, keys=16):
    query, key, value = dtypes
    shape = jax.ShapeDtypeStruct
    return dict(
        query=shape((1, 16, 2, width), query),
        key=shape((1, keys, 2, width), key),
        value=shape((1, keys, 2, width), value),
    )


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.int32, jnp.float8_e4m3fn])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(NotImplementedError, match="triton: query, key and value in .* or xla"):
        refuse(problem(dtypes=(dtype,) * 3))


def test_mixed_dtypes_are_refused():
    with pytest.raises(NotImplementedError, match="bfloat16, float32"):
        refuse(problem(dtypes=(jnp.float32, jnp.bfloat16, jnp.bfloat16)))


def test_wide_heads_and_empty_arrays_are_refused():
    refuse(problem(width=256))
    with pytest.raises(NotImplementedError, match="heads wider than 256; xla"):
        refuse(problem(width=257))
    with pytest.raises(NotImplementedError, match="an empty array; xla"):
        refuse(problem(keys=0))


def test_without_triton_the_package_imports_and_a_call_says_what_to_install():
    program = """
import sys
sys.modules["triton"] = None
from pallas_kernels.triton.rules import RULES
try:
    RULES.forward({}, None)
except NotImplementedError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'genjax[cuda]'" in found.stdout
