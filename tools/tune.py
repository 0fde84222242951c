"""Find the fastest tiles of every attention kernel on the GPU of this machine, and keep them as JSON.

Each kernel climbs, from the tiles of its own table and in 16 bits: all tiles that differ in one number by one step are
measured, and the fastest is the next to start from, until none is faster. Tiles that cannot run are named and passed
over; tiles whose result differs from that of plain JAX are a defect, and end the run. The table is written after every
kernel, so that a run that is stopped loses nothing: pallas_kernels/tuned/<kind of GPU>.json, which the kernels read on
such a GPU.

    python tools/tune.py                       every kernel, about 20 minutes
    python tools/tune.py --only triton/dkv     those whose name matches a regular expression
    python tools/tune.py --list                the kernels, their tiles and the first steps; needs no GPU

Exit code 2: there is no GPU, or no kernel has such a name.
"""

import argparse
import dataclasses
import functools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from pallas_kernels import tuning
from pallas_kernels.derivatives import Arrays, Rules
from pallas_kernels.dispatch.implementations import fused
from pallas_kernels.dot_product_attention import xla
from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.mosaic import config as mosaic
from pallas_kernels.triton import config as triton

GAIN = 1.02
"""Other tiles must be so much faster to take the place of those of the table."""
CHAIN = 10
"""Calls in one program, so that the start of a program does not count."""
TOKENS, LENGTH, HIDDEN = 16384, 4096, 2048
"""Of the problem that is measured: tokens in all, in a sequence, and heads times width."""
DRAFTS = 8
"""Queries of the decoding kernel, of 4 heads to a key head."""


@dataclass(frozen=True)
class Kernel:
    """A kernel whose tiles are sought."""

    name: str
    """implementation/kernel/width, and what else it holds in registers."""
    start: triton.Config | mosaic.Config
    neighbours: Callable[[triton.Config | mosaic.Config], list]

    @property
    def rules(self) -> Rules:
        """Of its implementation."""
        return fused.implementations[self.name.split("/")[0]]

    @property
    def kind(self) -> str:
        """Which kernel of the implementation."""
        return self.name.split("/")[1]

    def operands(self) -> Arrays:
        """The problem that is measured, in bfloat16; causal where there are many queries."""
        _, _, width, *load = self.name.split("/")
        batch, heads, decodes = TOKENS // LENGTH, HIDDEN // int(width), self.kind == "decode"
        queries, key_heads = (DRAFTS, heads // 4) if decodes else (LENGTH, heads)
        keys = iter(jax.random.split(jax.random.key(0), 4))
        normal = lambda *shape: jax.random.normal(next(keys), shape, jnp.bfloat16)  # noqa: E731
        found = {name: normal(batch, LENGTH, key_heads, int(width)) for name in ("key", "value")}
        found["query"] = normal(batch, queries, heads, int(width))
        if load == ["rows"]:
            end = jnp.arange(1, queries + 1, dtype=jnp.int32)
            found["key_start"], found["key_end"] = (jnp.broadcast_to(x, (batch, queries)) for x in (0 * end, end))
        if load == ["pairs"] or self.kind == "dbias":
            found["bias"] = normal(1, heads, queries, LENGTH)
        return found

    @property
    def settings(self) -> Settings:
        """Of that problem."""
        width, *load = self.name.split("/")[2:]
        return Settings(scale=int(width) ** -0.5, right=None if load == ["rows"] or self.kind == "decode" else 0)

    def run(self, rules: Rules, operands: Arrays, outputs: tuple, **options) -> object:
        """What the kernel is for, by these rules; `options` are further arguments of the rule."""
        if self.kind in ("forward", "decode"):
            return rules.forward(operands, self.settings, **options)
        if self.kind == "tangent":
            moving = {name: operands[name] for name in ("query", "key", "value")}
            return rules.tangent(moving, operands, outputs, self.settings, **options)
        wanted = {"dq": ("query",), "dkv": ("key", "value"), "dbias": ("bias",)}[self.kind]
        return rules.backward(outputs, operands, outputs, wanted, self.settings, **options)


def kernels() -> list[Kernel]:
    """Every kernel that has an entry in a table of tiles."""
    found = []
    for (kind, width, load), start in triton.TABLE.items():
        found.append(
            Kernel(triton.name_of(kind, width, load), start, functools.partial(triton.neighbours, kind, width))
        )
    for width, entries in mosaic.TUNED.items():
        for start in entries:
            name = mosaic.name_of(start.kernel, width)
            found.append(Kernel(name, start, functools.partial(mosaic.neighbours, width)))
    return found


def milliseconds(kernel: Kernel) -> Callable[[triton.Config | mosaic.Config], float]:
    """The cost of tiles on this GPU; infinite for those that cannot run."""
    operands = kernel.operands()
    outputs = jax.jit(lambda x: xla.RULES.forward(x, kernel.settings))(operands)
    expected = jax.jit(lambda x, y: kernel.run(xla.RULES, x, y))(operands, outputs)

    def cost(tiles) -> float:
        run = functools.partial(kernel.run, kernel.rules, configs={kernel.kind: tiles})
        once = jax.jit(run)
        try:
            found = once(operands, outputs)
            jax.block_until_ready(found)
        except Exception as error:  # of Triton, Mosaic, the assembler or the GPU: each has classes of its own
            print(f"  {tiles} cannot run: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            return float("inf")
        for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            one, two = (np.asarray(x, np.float32) for x in (one, two))
            np.testing.assert_allclose(
                one, two, rtol=0, atol=3e-2 * np.abs(two).max(), err_msg=f"{kernel.name} {tiles}"
            )

        @jax.jit
        def many(operands, outputs):
            def step(query, _):
                found = jax.lax.optimization_barrier(jax.tree.leaves(run(operands | {"query": query}, outputs)))
                return query + 0 * sum(x.ravel()[0] for x in found).astype(query.dtype), None

            return jax.lax.scan(step, operands["query"], length=CHAIN)[0]

        times = []
        for _ in range(6):
            start = time.perf_counter()
            jax.block_until_ready(many(operands, outputs))
            times.append(time.perf_counter() - start)
        return 1000 * statistics.median(times[1:]) / CHAIN

    return cost


def tune(found: Iterable[Kernel], costs: Callable[[Kernel], Callable], path: Path) -> None:
    """Climbs for each kernel and writes its row of the table at `path`; the other rows stay."""
    for kernel in found:
        best, measured = tuning.climb(kernel.start, kernel.neighbours, costs(kernel))
        before, after = measured[kernel.start], measured[best]
        if before < GAIN * after:
            best, after = kernel.start, before
        tiles = {name: x for name, x in dataclasses.asdict(best).items() if isinstance(x, int)}
        row = {"tiles": tiles, "milliseconds": after, "tried": len(measured), "gain": before / after}
        table = json.loads(path.read_text()) if path.exists() else {"kernels": {}}
        table |= {"jax": jax.__version__, "kernels": dict(sorted((table["kernels"] | {kernel.name: row}).items()))}
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(table, indent=1) + "\n")
        unfinished.rename(path)
        print(f"{kernel.name}: {after:.3f} ms with {best}, {before / after:.2f} times as fast as before")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="a regular expression: only the kernels whose names match it")
    parser.add_argument("--list", action="store_true", help="print the kernels with their tiles, and measure nothing")
    options = parser.parse_args(arguments)
    chosen = [kernel for kernel in kernels() if re.search(options.only, kernel.name)]
    if not chosen:
        print(f"--only is {options.only!r}: no kernel has such a name; --list prints them", file=sys.stderr)
        return 2
    if options.list:
        for kernel in chosen:
            print(f"{kernel.name}: {kernel.start}, {len(kernel.neighbours(kernel.start))} steps from it")
        return 0
    if jax.default_backend() != "gpu":
        print(f"tiles are measured on a GPU, and JAX runs on {jax.default_backend()} here", file=sys.stderr)
        return 2
    tune(chosen, milliseconds, tuning.path_of(jax.devices()[0].device_kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
