"""Every kernel lowers for CUDA on a machine without a GPU, through jax-triton."""

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("triton", reason="Triton is not installed")
try:
    import jax_triton  # noqa: F401
except ImportError as error:
    pytest.skip(f"jax-triton cannot be imported: {error}", allow_module_level=True)

from pallas_kernels.derivatives import Fused
from pallas_kernels.dot_product_attention.problem import DIFFERENTIABLE, shapes
from pallas_kernels.triton import resources
from pallas_kernels.triton.rules import RULES

attention = Fused("attention", {"triton": RULES}, RULES, shapes)


def launches(function, operands):
    text = jax.jit(function).trace(operands).lower(lowering_platforms=("cuda",)).as_text()
    return text.count("stablehlo.custom_call @triton_kernel_call")


def moving(operands):
    return {name: operands[name] for name in DIFFERENTIABLE if name in operands}


@pytest.mark.parametrize(("width", "dtype"), [(64, jnp.bfloat16), (128, jnp.float16), (256, jnp.bfloat16)])
def test_value_gradient_and_tangent_take_one_two_and_one_kernels_more(width, dtype):
    operands, settings = resources.problem(width, dtype)
    attend = lambda moved, fixed: attention(fixed | moved, settings, "triton")[0]  # noqa: E731
    total = lambda moved, fixed: attend(moved, fixed).astype(jnp.float32).sum()  # noqa: E731
    assert launches(lambda x: attend({}, x), operands) == 1
    assert launches(lambda x: jax.grad(total)(moving(x), x), operands) == 3
    assert launches(lambda x: jax.jvp(lambda m: attend(m, x), (moving(x),), (moving(x),)), operands) == 2


@pytest.mark.parametrize("feature", resources.FEATURES)
def test_every_feature_lowers_in_every_kernel(feature):
    operands, settings = resources.problem(64, feature=feature)
    attend = lambda moved, fixed: attention(fixed | moved, settings, "triton")[0]  # noqa: E731
    total = lambda moved, fixed: attend(moved, fixed).astype(jnp.float32).sum()  # noqa: E731
    assert launches(lambda x: jax.grad(total)(moving(x), x), operands) == 3 + ("bias" in operands)
    assert launches(lambda x: jax.jvp(lambda m: attend(m, x), (moving(x),), (moving(x),)), operands) == 2


@pytest.mark.parametrize("feature", [None, "tree", "ranges", "sinks"])
def test_few_queries_over_many_keys_lower_as_one_launch_of_splits(feature):
    operands, settings = resources.problem(128, feature=feature)
    few = {name: x for name, x in operands.items() if name not in ("query", "ancestors", "key_start", "key_end")}
    for name in set(operands) - set(few):
        shape = list(operands[name].shape)
        shape[1] = 8
        few[name] = jax.ShapeDtypeStruct(tuple(shape), operands[name].dtype)
    assert launches(lambda x: attention(x, settings, "triton"), few) == 1
