"""What the assembler says of every tuned kernel: registers, spills, shared memory, wgmma and bulk copies (TMA).

Needs a compiler for a Hopper GPU, not the GPU: `compile(f, *shapes)` is a function that compiles for one, such as that
of tools/aot.py.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from pallas_kernels import tuning
from pallas_kernels.derivatives import Arrays
from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.mosaic.backward import backward
from pallas_kernels.mosaic.config import KERNELS, TUNED, Config, name_of
from pallas_kernels.mosaic.forward import forward

MASKS = {
    "full": (Settings(scale=0.125), ()),
    "causal": (Settings(scale=0.125, right=0), ()),
    "packed": (Settings(scale=0.125, right=0), ("query_segments", "key_segments")),
}
"""Settings, and arrays of the mask, of each kind of problem that is measured."""


def problem(head: int, kind: str, *, length: int = 4096, heads: int = 8, key_heads: int = 4) -> tuple[Arrays, Settings]:
    """Shapes of the operands, and settings, of a problem of that kind."""
    settings, names = MASKS[kind]
    shapes = {"query": heads, "key": key_heads, "value": key_heads}
    shapes = {name: jax.ShapeDtypeStruct((2, length, n, head), jnp.bfloat16) for name, n in shapes.items()}
    return shapes | {name: jax.ShapeDtypeStruct((2, length), jnp.int32) for name in names}, settings


def functions(
    operands: Arrays, settings: Settings, configs: Mapping[str, Config] | None = None
) -> dict[str, tuple[Callable, tuple]]:
    """Function and shapes of its arguments for each kernel: forward, dq and dkv."""
    batch, length, heads, _ = operands["query"].shape
    outputs = (operands["query"], jax.ShapeDtypeStruct((batch, length, heads), jnp.float32))

    def derivatives(*wanted):
        return lambda given, found, cotangents: backward(cotangents, given, found, wanted, settings, configs)

    return {
        "forward": (lambda given: forward(given, settings, configs), (operands,)),
        "dq": (derivatives("query"), (operands, outputs, outputs)),
        "dkv": (derivatives("key", "value"), (operands, outputs, outputs)),
    }


def names() -> list[str]:
    """Every kernel of the table as kernel/width/mask, and every measured one as kernel/width/mask/kind of GPU."""
    cards = {"": [name_of(kernel, head) for head in TUNED for kernel in KERNELS]} | tuning.tables()
    found = []
    for card, kernels in cards.items():
        for name in kernels:
            room, *kernel = name.split("/")
            if room == "mosaic":
                found += ["/".join([*kernel, kind, *([card] if card else [])]) for kind in MASKS]
    return found


def measure(compile: Callable, name: str) -> dict[str, int]:
    """registers, spill_bytes, shared_memory, wgmma, tma of one kernel of `names`."""
    kernel, head, kind, *card = name.split("/")
    configs = {}
    if card:
        configs[kernel] = Config(kernel, **tuning.tables()[card[0]][name_of(kernel, int(head))])
    function, shapes = functions(*problem(int(head), kind), configs)[kernel]
    with dumped() as folder:
        compile(function, *shapes)
        return figures(folder)


@contextlib.contextmanager
def dumped() -> Iterator[Path]:
    """A folder into which Mosaic writes what it compiles meanwhile: PTX and the words of the assembler."""
    with tempfile.TemporaryDirectory() as folder:
        variables = {"MOSAIC_GPU_DUMP_PTXAS": "1", "MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_DUMP_TO": folder}
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


_LAUNCH = "dynamic_shared_memory_size %c"


def figures(folder: Path) -> dict[str, int]:
    """The figures of the one kernel that was dumped into the folder."""
    (ptx,), (words,), (passes,) = (list(folder.glob(f"*.{kind}")) for kind in ("ptx", "ptxas", "mlir-passes.log"))
    ptx, words = ptx.read_text(), words.read_text()
    if "serialized" in words:
        raise RuntimeError(f"the assembler serialises wgmma: {words}")
    with passes.open() as log:
        shared = next(re.search(r"dynamic_shared_memory_size %c(\d+)", line) for line in log if _LAUNCH in line)
    (registers,) = re.findall(r"Used (\d+) registers", words)
    return {
        "registers": int(registers),
        "spill_bytes": sum(map(int, re.findall(r"(\d+) bytes spill stores", words))),
        "shared_memory": int(shared[1]),
        "wgmma": ptx.count("wgmma.mma_async"),
        "tma": ptx.count("cp.async.bulk.tensor"),
    }
