"""Compile for an H100 on a machine without one, and hold every kernel to a committed budget.

XLA's GPU compiler needs no GPU: given the figures of a device (`h100.txtpb`) it compiles ahead of time down to machine
code, and the assembler reports registers, spills and shared memory. What this proves: that every kernel compiles, that
none spills or has grown past its budget (`aot_budget.json`), that the tensor cores (wgmma) and the bulk copies (TMA)
are in use, and what a model keeps in memory. It proves nothing about numbers or speed.

    python tools/aot.py                 check every kernel against the budget; the last line is one line of JSON
    python tools/aot.py --models        and SD3-medium, forward and backward, with each implementation of attention
    python tools/aot.py --write         write the budget anew from what is measured

Exit code 1: registers, shared memory or temporary memory above the budget, a spill, or wgmma or TMA missing.
Needs, beside jax: pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt (of the version of jax) triton jax-triton
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent
BUDGET = FOLDER / "aot_budget.json"
NEEDED = {
    "triton": "triton",
    "jax_triton": "jax-triton",
    "jax_cuda12_plugin": "jax-cuda12-plugin",
    "jax_plugins.xla_cuda12": "jax-cuda12-pjrt",
}
"""Modules that this tool needs beside jax, and the packages that bring them."""
AT_MOST = ("registers", "spill_bytes", "shared_memory", "temp_bytes", "square_buffers")
AT_LEAST = ("wgmma", "tma")


def missing() -> str | None:
    """One sentence that names the packages to install; None when nothing is missing."""
    absent = []
    for module, packages in NEEDED.items():
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(module) is not None:
                continue
        absent.append(packages)
    return f"ahead-of-time compilation needs: pip install --no-deps {' '.join(absent)}" if absent else None


@functools.cache
def h100():
    """The sharding that places everything on the one H100 of a machine that has none.

    All use of jax._src is here. Raises ModuleNotFoundError with one sentence when a package is missing.
    """
    if reason := missing():
        raise ModuleNotFoundError(reason)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_cuda_data_dir={cuda_tools()}"

    import jax
    from jax._src.lib import xla_client
    from jax.experimental import topologies
    from jax.experimental.compilation_cache import compilation_cache
    from jax.experimental.mosaic import gpu  # noqa: F401 it says where its tools are: before we do
    from jax.sharding import NamedSharding, PartitionSpec

    os.environ["MOSAIC_GPU_CUDA_ROOT"] = cuda_tools()
    jax.config.update("jax_enable_compilation_cache", False)  # of what is not assembled, the assembler reports nothing
    compilation_cache.reset_cache()
    jax.devices()  # finds the plugin
    if not xla_client.pjrt_plugin_initialized("cuda"):
        xla_client.initialize_pjrt_plugin("cuda")
    config = (FOLDER / "h100.txtpb").read_text()
    topology = topologies.get_topology_desc("", "cuda", target_config=config, topology="1x1x1")
    return NamedSharding(topologies.make_mesh(topology, (1,), ("gpu",)), PartitionSpec())


@functools.cache
def cuda_tools() -> str:
    """A folder laid out like a CUDA toolkit, with the assembler and the device library that triton brings along."""
    nvidia = Path(importlib.util.find_spec("triton").origin).parent / "backends" / "nvidia"
    folder = Path(tempfile.mkdtemp(prefix="cuda_tools_"))
    links = {"bin/ptxas": "bin/ptxas", "bin/nvdisasm": "bin/nvdisasm"}
    links["nvvm/libdevice/libdevice.10.bc"] = "lib/libdevice.10.bc"
    for link, target in links.items():
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        (folder / link).symlink_to(nvidia / target)
    return str(folder)


def compile_for_h100(function: Callable, *shapes):
    """`function` of arguments like `shapes` (pytrees of jax.ShapeDtypeStruct), compiled: a jax.stages.Compiled.

    Its `memory_analysis()` and `as_text()` (optimised HLO) tell what would run. It cannot be run here.
    """
    import jax

    sharding = h100()
    jitted = jax.jit(function, in_shardings=sharding, out_shardings=sharding)
    return jitted.trace(*shapes).lower(lowering_platforms=("cuda",)).compile()


def kernels(only: str) -> dict[str, dict[str, int]]:
    """What the assembler says of the tuned kernels whose names match: registers, spill_bytes, shared_memory, ..."""
    from pallas_kernels.mosaic import resources as mosaic
    from pallas_kernels.neighbours import resources as neighbours
    from pallas_kernels.triton import resources as triton

    found = {}
    for name in mosaic.names():
        if re.search(only, f"mosaic/{name}"):
            found[f"mosaic/{name}"] = mosaic.measure(compile_for_h100, name)
    for room, resources in (("triton", triton), ("neighbours", neighbours)):
        if not only or room in only:
            rows = resources.report().items()
            found |= {f"{room}/{name}": {RENAMED.get(f, f): n for f, n in row.items()} for name, row in rows}
    return {name: row for name, row in found.items() if re.search(only, name)}


RENAMED = {"spills": "spill_bytes", "shared": "shared_memory"}
"""Figures that the Triton report names otherwise."""


# Models.

IMPLEMENTATIONS = ("xla", "cudnn", "triton", "mosaic")
CUDNN = 91000
"""The version that JAX is told is there: it asks before it writes the call, which needs no cuDNN. Scratch memory of the
call itself is not known before it runs, and not counted."""


def sd3_medium(implementation: str) -> dict[str, int]:
    """Temporary memory, and buffers of tokens x tokens, of SD3-medium forward and backward: one 1024 x 1024 image.

    128 x 128 x 16 latent = 4096 image tokens, with 77 + 256 tokens of text; bfloat16. The number of tokens, 4429, is
    43 * 103, so that a buffer that holds a matrix of tokens x tokens is known by its size, whatever its shape; so it is
    with the few tokens more that some kernels add.
    """
    import jax
    import jax.numpy as jnp
    from flax.core import meta

    from configs.sd3 import VARIANTS

    plain = VARIANTS["medium"]().model.clone(attention_implementation="xla")
    model = plain.clone(attention_implementation=implementation)
    text, tokens = 77 + 256, 77 + 256 + 64 * 64
    given = [(1, 128, 128, 16), (1,), (1, text, 4096), (1, 2048)]
    given = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in given]

    def loss(params, *inputs):
        return model.apply({"params": params}, *inputs).astype(jnp.float32).sum()

    params = meta.unbox(jax.eval_shape(plain.init, jax.random.key(0), *given))["params"]
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    step = jax.value_and_grad(loss, argnums=(0, 1))
    if implementation == "cudnn":
        step = on_one_device(step)
    with told_of_cudnn():
        compiled = compile_for_h100(step, params, *given)
    return {
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "square_buffers": len(square_buffers(compiled.as_text(), tokens)),
    }


def on_one_device(function: Callable) -> Callable:
    """JAX's call of cuDNN wants to know its devices: inside shard_map it does."""
    import jax
    from jax.sharding import PartitionSpec

    whole = PartitionSpec()
    return jax.shard_map(function, mesh=h100().mesh, in_specs=whole, out_specs=whole, check_vma=False)


@contextlib.contextmanager
def told_of_cudnn():
    """While it is entered, JAX takes cuDNN to be there."""
    from jax._src.cudnn import fused_attention_stablehlo as calls

    asked = calls.check_cudnn_version
    calls.check_cudnn_version = lambda: CUDNN
    try:
        yield
    finally:
        calls.check_cudnn_version = asked


def square_buffers(hlo: str, tokens: int) -> set[str]:
    """Shapes in a program whose size is a multiple of tokens^2, or of the square of up to 7 tokens more."""
    squares, found = [(tokens + more) ** 2 for more in range(8)], set()
    for shape in set(re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", hlo)):
        size = functools.reduce(lambda product, axis: product * int(axis), shape.split(","), 1)
        if size and any(size % square == 0 for square in squares):
            found.add(shape)
    return found


# The budget.


def violations(name: str, found: dict[str, int], budget: dict[str, int] | None) -> list[str]:
    """What is wrong with a kernel or a model, in words; empty when nothing is."""
    wrong = []
    if name.startswith("mosaic/"):
        wrong += [f"{name}: {found['spill_bytes']} bytes spilled"] if found["spill_bytes"] else []
        wrong += [f"{name}: no {unit} instruction" for unit in AT_LEAST if not found[unit]]
    if budget is None:
        return [*wrong, f"{name}: not in {BUDGET.name}; write it with --write"]
    for figure in (*AT_MOST, *AT_LEAST):
        if figure not in found or figure not in budget:
            continue
        ahead = found[figure] - budget[figure]
        if ahead > 0 and figure in AT_MOST or found[figure] == 0 < budget[figure] and figure in AT_LEAST:
            wrong.append(f"{name}: {figure} {found[figure]}, budget {budget[figure]}")
    return wrong


def table(rows: dict[str, dict[str, int]]) -> str:
    """The figures, one line for each kernel or model."""
    figures = [figure for figure in (*AT_MOST, *AT_LEAST) if any(figure in row for row in rows.values())]
    width = max(map(len, rows), default=0)
    lines = [" ".join([" " * width, *figures])]
    for name, row in rows.items():
        cells = [str(row.get(figure, "")).rjust(len(figure)) for figure in figures]
        lines.append(" ".join([name.ljust(width), *cells]))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", action="store_true", help="also SD3-medium with each implementation")
    parser.add_argument("--only", default="", help="a regular expression: only the kernels and models that match it")
    parser.add_argument("--write", action="store_true", help="write the budget anew from what is measured")
    options = parser.parse_args(arguments)
    if reason := missing():
        print(reason, file=sys.stderr)
        return 2

    found = kernels(options.only)
    if options.models:
        names = (name for name in IMPLEMENTATIONS if re.search(options.only, f"sd3_medium/{name}"))
        found |= {f"sd3_medium/{name}": sd3_medium(name) for name in names}
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    if options.write:
        measured = ("mosaic/", "triton/", "neighbours/", *(["sd3_medium/"] if options.models else []))
        kept = {n: row for n, row in budget.items() if not (n.startswith(measured) and re.search(options.only, n))}
        budget = dict(sorted((kept | found).items()))
        lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in budget.items()]
        BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    wrong = [line for name, row in found.items() for line in violations(name, row, budget.get(name))]
    print(table(found))
    print("\n".join(wrong) or f"{len(found)} within the budget")
    print(json.dumps({"checked": len(found), "violations": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    # Before jax is imported: no GPU is wanted, and the repository is where the packages lie.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, str(FOLDER.parent))
    sys.exit(main())
