"""What the compiler makes of every kernel: registers, spills, shared memory, tensor-core instructions, without a GPU.

Triton brings ptxas and cuobjdump along, so each launch can be compiled for Hopper on any machine. A kernel that spills
registers to memory has lost before it starts: the tests hold every entry of the table in config.py to zero spills.
"""

import os
import re
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import triton
import triton.backends.nvidia as nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pallas_kernels import tuning
from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.triton import backward, config, decode, flash, tangent
from pallas_kernels.triton.launch import HOPPER, Launch, compiler_options, write_for_cuda_12

_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int32": "i32", "uint32": "u32", "bool": "i1"}
DRAFTS = 16
"""Queries of the decoding kernel; of 4 heads each."""
PER_QUERY = ("query", "key_start", "key_end", "query_segments", "query_positions", "ancestors")
KINDS = ("forward", "dq", "dkv", "dbias", "tangent", "decode")


def report(kinds=KINDS, dtype=jnp.bfloat16) -> dict[str, dict[str, int]]:
    """{name: {registers, spills, shared, wgmma}} of every entry of the table, and of the forward kernel by feature.

    And of every entry that was measured on some kind of GPU.
    """
    found = {}
    for kind, width, load in config.TABLE:
        if kind in kinds:
            feature = {None: "bias" if kind == "dbias" else None, "rows": "ranges", "pairs": "dense"}[load]
            given = problem(width, dtype, feature)
            found[name(kind, width, load)] = measure(kind, *given)
            for card, measured in tuning.tables().items():
                tiles = measured.get(config.name_of(kind, width, load))
                if tiles is not None:
                    row = measure(kind, *given, config.Config(**tiles))
                    found[f"{name(kind, width, load)} on {card}"] = row
    if "forward" in kinds:
        found |= {
            name("forward", 64, feature): measure("forward", *problem(64, dtype, feature)) for feature in FEATURES
        }
    return found


def name(kind: str, width: int, load: str | None = None) -> str:
    """Of an entry in the report."""
    return f"{kind} {width}" if load is None else f"{kind} {width} {load}"


def problem(width: int, dtype=jnp.bfloat16, feature: str | None = None) -> tuple[Arrays, Settings]:
    """Shapes of a causal problem of 8 query heads and 2 key heads, with a bias for dbias, and one more feature."""
    shape = jax.ShapeDtypeStruct
    operands = dict(query=shape((2, 1024, 8, width), dtype), bias=shape((1, 8, 1024, 1024), dtype))
    operands |= {key: shape((2, 1024, 2, width), dtype) for key in ("key", "value")}
    settings = Settings(scale=0.1, right=0)
    if feature is not None:
        extra, changes = FEATURES[feature]
        operands |= {key: shape(size, kind) for key, (size, kind) in extra.items()}
        settings = Settings(**dict(scale=0.1) | changes)
    if feature != "bias":
        operands.pop("bias")
    return operands, settings


_ROW = ((2, 1024), jnp.int32)
FEATURES = {
    "bias": ({}, {}),
    "soft cap": ({}, dict(soft_cap=30.0)),
    "sinks": (dict(sinks=((1, 8), jnp.float32)), {}),
    "window": ({}, dict(left=256, right=0)),
    "ranges": (dict(key_start=_ROW, key_end=_ROW), {}),
    "segments": (dict(query_segments=_ROW, key_segments=_ROW), dict(right=0)),
    "positions": (dict(query_positions=_ROW, key_positions=_ROW), dict(right=0)),
    "tree": (dict(ancestors=((1, 1024, 2), jnp.uint32), tree_start=((2,), jnp.int32)), {}),
    "dense": (dict(dense=((2, 1, 1024, 1024), jnp.bool_)), {}),
}
"""Further operands and settings of each."""


def measure(kind: str, operands: Arrays, settings: Settings, tiles: config.Config | None = None) -> dict[str, int]:
    """What the kernel of this kind takes, with the tiles of the table unless others are given."""
    found = []

    def build(operands, outputs, rows):
        launch = _launch(kind, operands, outputs, rows, settings, tiles)
        found.append(launch)
        return jnp.zeros(())

    (b, t, n, _), v = operands["query"].shape, operands["value"].shape[-1]
    outputs = (
        jax.ShapeDtypeStruct((b, t, n, v), operands["query"].dtype),
        jax.ShapeDtypeStruct((b, t, n), jnp.float32),
    )
    rows = jax.ShapeDtypeStruct((b, n, t), jnp.float32)
    jax.eval_shape(build, operands, outputs, rows)
    return compiled(found[0])


def _launch(kind, operands, outputs, rows, settings, tiles) -> Launch:
    given = (outputs[0], rows, rows)
    configs = None if tiles is None else {kind: tiles}
    tiles = config.choose(kind, operands, configs)
    if kind == "forward":
        return flash.launch_forward(operands, settings, tiles)
    if kind == "decode":
        few = {key: x[:, :DRAFTS] if key in PER_QUERY else x for key, x in operands.items()}
        tiles, _ = decode.plan(few, configs)
        return flash.launch_forward(few, settings, tiles, pack=4, splits=2)
    if kind == "tangent":
        moving = {name: operands[name] for name in ("query", "key", "value")}
        return tangent.launch_tangent(moving, operands, outputs, settings, tiles)
    launches = {"dq": backward.launch_dq, "dkv": backward.launch_dkv, "dbias": backward.launch_dbias}
    return launches[kind](given, operands, settings, tiles)


def compiled(launch: Launch) -> dict[str, int]:
    """{registers, spills, shared, wgmma} of the kernel of a launch, compiled for Hopper."""
    source, options = _source(launch)
    write_for_cuda_12()  # JAX's assembler is of CUDA 12 too
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder  # jax-triton 0.3 leaves an empty name there
        kernel = triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=options)
    tool = os.path.join(os.path.dirname(nvidia.__file__), "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return dict(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        spills=int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1]),
        shared=kernel.metadata.shared,
        wgmma=kernel.asm["ptx"].count("wgmma.mma_async"),
    )


def _source(launch: Launch) -> tuple[ASTSource, dict]:
    arguments = [*launch.inputs, *launch.outputs]
    names = launch.kernel.arg_names
    signature = {
        name: "i32" if isinstance(x, int) else "*" + _TYPES[x.dtype.name]
        for name, x in zip(names, arguments, strict=False)
    }
    signature |= dict.fromkeys(launch.constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, x in enumerate(arguments) if not isinstance(x, int)}
    options = dict(num_warps=launch.config.num_warps, num_stages=launch.config.num_stages) | compiler_options()
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=launch.constants, attrs=aligned), options
