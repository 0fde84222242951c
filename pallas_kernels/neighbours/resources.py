"""What the compiler makes of the Triton kernels of the neighbours: registers, spills, shared memory, without a GPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.neighbours import grouped_matmul, grouped_matmul_triton, norm, norm_triton, rotary, rotary_triton
from pallas_kernels.triton.launch import Launch
from pallas_kernels.triton.resources import compiled


def report(dtype=jnp.bfloat16) -> dict[str, dict[str, int]]:
    """{kernel and shape: {registers, spills, shared, wgmma}}, compiled for Hopper; spills are bytes of local memory."""
    found = {}
    for width in (64, 1536, norm.LONGEST // jnp.dtype(dtype).itemsize):
        found |= {f"{name} {width}": measure(*case) for name, case in _norms(width, dtype).items()}
    for layout in ("interleaved", "halves"):
        for width, turned in ((64, 64), (128, 128), (128, 64)):
            cases = _rotaries(layout, width, turned, dtype)
            found |= {f"{name} {layout} {turned} of {width}": measure(*case) for name, case in cases.items()}
    for rows in (512, 16384):
        found |= {f"{name} {rows} rows": measure(*case) for name, case in _grouped(rows, dtype).items()}
    return found


def measure(launch: Callable[..., Launch], *shapes) -> dict[str, int]:
    """What the kernel of `launch(*arrays)` takes, for arrays of these shapes; none is allocated."""
    launches = []
    jax.eval_shape(lambda *arrays: launches.append(launch(*arrays)), *shapes)
    return compiled(launches[0])


def _norms(width: int, dtype) -> dict[str, tuple]:
    """adaLN with a gated residual, everything wanted: the fullest kernels of their kind."""
    tokens, vector = (jax.ShapeDtypeStruct((4, n, width), dtype) for n in (1024, 1))
    operands = dict(x=tokens, branch=tokens, gate=vector, multiplier=vector, offset=vector)
    settings, outputs, names = norm.Settings("layer", 1e-6, one_plus=True), [tokens, tokens], tuple(operands)
    return {
        "norm forward": (lambda o: norm_triton.launch_forward(o, settings), operands),
        "norm tangent": (lambda o, y: norm_triton.launch_tangent(o, o, y, settings), operands, outputs),
        "norm backward": (lambda o, y: norm_triton.launch_backward(y, o, y, names, settings), operands, outputs),
    }


def _rotaries(layout: rotary.Layout, width: int, turned: int, dtype) -> dict[str, tuple]:
    """qk-norm with weights, four query heads to a key head."""
    shape = jax.ShapeDtypeStruct
    angles, weight = shape((1, 1024, turned // 2), jnp.float32), shape((1, width), jnp.float32)
    operands = {name: shape((4, 1024, heads, width), dtype) for name, heads in (("query", 8), ("key", 2))}
    operands |= dict(cos=angles, sin=angles, query_weight=weight, key_weight=weight)
    settings = rotary.Settings(layout, norm=True, epsilon=1e-6)
    moving = ("query", "key", "query_weight", "key_weight")

    def tangent(o):
        return rotary_triton.launch_tangent({name: o[name] for name in moving}, o, settings)

    def backward(o):
        return rotary_triton.launch_backward((o["query"], o["key"]), o, moving, settings)

    return {
        "rotary forward": (lambda o: rotary_triton.launch_forward(o, settings), operands),
        "rotary tangent": (tangent, operands),
        "rotary backward": (backward, operands),
    }


def _grouped(rows: int, dtype) -> dict[str, tuple]:
    """Eight experts of 2048 by 4096; few rows make small tiles."""
    shape = jax.ShapeDtypeStruct
    sizes = shape((1, 8), jnp.int32)
    product = dict(lhs=shape((1, rows, 2048), dtype), rhs=shape((1, 8, 2048, 4096), dtype), sizes=sizes)
    transposed = product | {"rhs": shape((1, 8, 4096, 2048), dtype)}
    contraction = product | {"rhs": shape((1, rows, 4096), dtype)}
    launch, Settings = grouped_matmul_triton.launch_product, grouped_matmul.Settings
    return {
        "grouped product": (lambda o: launch(o, Settings()), product),
        "grouped product, transposed": (lambda o: launch(o, Settings(transposed=True)), transposed),
        "grouped contraction": (grouped_matmul_triton.launch_contraction, contraction),
    }
