"""Attention against the ways that people have it today: time of value and gradient, and memory.

    python benchmarks/attention.py --cpu            ours, jax.nn.dot_product_attention and torch, float32, on a CPU
    python benchmarks/attention.py                  on a GPU: cuDNN, Mosaic, Triton and plain JAX, bfloat16

All take turns in one run and are checked to agree first. On a CPU the last part runs a long sequence in a process of
its own and prints the most memory that it ever held. On a GPU a time is that of a chain of calls inside one program,
divided by its length, and the table is also written to benchmarks/results/, under the name of the card.
"""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import side_by_side as sbs
import tyro

from pallas_kernels import attention
from pallas_kernels.dispatch.capabilities import LACKS

RESULTS = Path(__file__).parent / "results"
LONG = 32768
"""Length of the sequence whose memory is measured; a matrix of logits of its 8 heads would take 32 GiB."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    cpu: bool = False
    """Run on the CPU, beside torch."""
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Sequence lengths on the CPU."""
    tokens: int = 2048
    """Tokens in a batch on the CPU; a longer sequence is a batch of one."""
    rounds: int = 5
    """Turns that each takes."""
    long_run: bool = False
    """Only run the long sequence (this is how the benchmark starts its second process)."""


def inputs(batch: int, length: int, heads: int, width: int, dtype) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(key, (batch, length, heads, width), dtype) for key in keys)


def value(attend: Callable) -> Callable:
    return attend


def gradient(attend: Callable) -> Callable:
    return jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))


def ready(function: Callable, given: tuple) -> Callable[[], None]:
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*given))


# On a CPU.


def on_cpu(options: Options) -> None:
    heads, width = 8, 64
    rows, result = [], {}
    for causal in (False, True):
        for length in options.lengths:
            given = inputs(max(1, options.tokens // length), length, heads, width, jnp.float32)
            for name, of in (("forward", value), ("with gradients", gradient)):
                forms = {
                    "ours": ready(of(functools.partial(attention, is_causal=causal)), given),
                    "jax": ready(of(functools.partial(jax.nn.dot_product_attention, is_causal=causal)), given),
                    "torch": torch_form(given, causal, with_gradients=of is gradient),
                }
                agree(forms)
                times = sbs.medians(options.rounds, 2, **forms)
                kind = "causal" if causal else "full"
                ratios = [times[other] / times["ours"] for other in ("jax", "torch")]
                rows.append([f"{kind} {length} {name}", *(1000 * times[x] for x in forms), *ratios])
                result[f"{kind}_{length}_{name.replace(' ', '_')}"] = ratios
    sbs.print_table(
        f"Attention of {heads} heads of width {width} in float32: milliseconds, and how many times faster ours is",
        ["", "ours", "jax.nn", "torch", "jax.nn / ours", "torch / ours"],
        rows,
    )
    gibibytes = long_memory()
    sbs.console.print(f"T = {LONG}, 8 heads of 64: a process with value and gradient peaks at {gibibytes:.2f} GiB.")
    sbs.print_result(benchmark="attention", ratios={"jax/ours, torch/ours": result}, long_peak_gib=gibibytes)


def torch_form(given: tuple, causal: bool, with_gradients: bool) -> Callable[[], object]:
    import torch

    query, key, value = (torch.from_numpy(np.array(x)).transpose(1, 2) for x in given)
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=causal)
    if not with_gradients:

        def forward():
            with torch.no_grad():
                return attend(query, key, value).transpose(1, 2)

        return forward
    parts = [x.requires_grad_() for x in (query, key, value)]
    return lambda: [x.transpose(1, 2) for x in torch.autograd.grad(attend(*parts).sum(), parts)]


def agree(forms: dict[str, Callable], reference: str = "ours", atol: float = 2e-4) -> None:
    found = {name: [np.asarray(x, np.float32) for x in jax.tree.leaves(run())] for name, run in forms.items()}
    for name, arrays in found.items():
        for x, y in zip(arrays, found[reference], strict=True):
            np.testing.assert_allclose(x, y, atol=atol, err_msg=name)


def long_memory() -> float:
    """Most memory, in GiB, of a process that takes value and gradient of a long sequence."""
    program = [sys.executable, __file__, "--cpu", "--long-run"]
    out = subprocess.run(
        program, check=True, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    return float(out.stdout.split()[-1])


def long_run() -> None:
    given = inputs(1, LONG, 8, 64, jnp.float32)
    jax.block_until_ready(jax.jit(gradient(attention))(*given))
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent held when it started us
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 2**20)


# On a GPU.


def packed(length: int) -> dict:
    """Twelve documents of different lengths in one row."""
    ends = np.cumsum(np.linspace(1, 3, 12))
    return {"segment_ids": jnp.asarray(np.searchsorted(ends / ends[-1], np.arange(length) / length, "right"))[None]}


def tangent(attend: Callable) -> Callable:
    return lambda *x: jax.jvp(attend, x, x)[1]


CASES = {"full": lambda length: {}, "causal": lambda length: {"is_causal": True}, "packed": packed}
DERIVATIVES = {"forward": value, "with gradients": gradient, "tangent": tangent}
WIDTHS, LENGTHS, TOKENS, HIDDEN = (64, 128), (512, 2048, 8192, 16384), 16384, 2048
"""On a GPU; the number of heads is HIDDEN / width."""
AIMS = {
    ("mosaic", "forward"): 0.95,
    ("mosaic", "backward"): 0.85,
    ("triton", "forward"): 0.55,
    ("triton", "backward"): 0.55,
}
"""Least time of cuDNN / ours, full and causal."""
TANGENT_AIM = 3.0
"""Least time of plain JAX / Triton at 8,192."""


def on_gpu(options: Options) -> None:
    result = {}
    for width, length, case in itertools.product(WIDTHS, LENGTHS, CASES):
        given = inputs(TOKENS // length, length, HIDDEN // width, width, jnp.bfloat16)
        for name, of in DERIVATIVES.items():
            forms = {x: ready(of(attend), given) for x, attend in attends(case, length).items()}
            forms = {x: form for x, form in forms.items() if runs(f"{x}, {case} {length} {name}", form)}
            agree(forms, "xla", atol=5e-2)
            chains = {
                x: ready(repeated(of(attend)), given) for x, attend in attends(case, length).items() if x in forms
            }
            times = sbs.medians(options.rounds, 3, **chains)
            result[f"{width} {case} {length} {name}"] = {x: 1000 * t / CHAIN for x, t in times.items()}
        forward, both = (result[f"{width} {case} {length} {name}"] for name in ("forward", "with gradients"))
        backward = {x: both[x] - forward[x] for x in both if x in forward}
        result[f"{width} {case} {length} backward"] = backward
    rows = [[name, *(found.get(x, "") for x in LACKS)] for name, found in result.items()]
    sbs.print_table(f"Attention in bfloat16, {TOKENS} tokens of width {HIDDEN}: milliseconds", ["", *LACKS], rows)
    verdicts = judged(result)
    for name, figure in verdicts.items():
        sbs.console.print(f"{name}: {figure:.2f}")
    card = re.sub(r"\W+", "_", jax.devices()[0].device_kind).lower()
    figures = {"benchmark": "attention", "milliseconds": result, "ratios": verdicts}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"attention_{card}.json").write_text(json.dumps(figures | {"machine": sbs.machine()}, indent=1) + "\n")
    sbs.print_result(**figures)


def attends(case: str, length: int) -> dict[str, Callable]:
    """Every implementation that takes the case; cuDNN as JAX offers it, since our rules run its forward pass twice."""
    options, found = CASES[case](length), {}
    for name in LACKS:
        found[name] = functools.partial(attention, implementation=name, **options)
    if case == "packed":
        del found["cudnn"]
    else:
        found["cudnn"] = functools.partial(jax.nn.dot_product_attention, implementation="cudnn", **options)
    return found


def runs(name: str, form: Callable) -> bool:
    """Whether it runs here; why not is printed."""
    try:
        form()
    except (NotImplementedError, TypeError, jax.errors.JaxRuntimeError) as error:  # TypeError: cuDNN has no tangent
        sbs.console.print(f"{name}: {(str(error) or repr(error)).splitlines()[0]}")
        return False
    return True


def judged(milliseconds: dict[str, dict[str, float]]) -> dict[str, float]:
    """The least ratios, beside what they should be; and what a packed row takes of the time of a full one."""
    found = {}

    def least(title, name, numerator, denominator):
        times = [row for key, row in milliseconds.items() if re.fullmatch(name, key)]
        ratios = [row[numerator] / row[denominator] for row in times if {numerator, denominator} <= row.keys()]
        if ratios:
            found[title] = min(ratios)

    for (implementation, part), aim in AIMS.items():
        title = f"cudnn / {implementation}, {part}, least (aim {aim})"
        least(title, rf"\d+ (full|causal) \d+ {part}", "cudnn", implementation)
    least(f"xla / triton, tangent at 8192, least (aim {TANGENT_AIM:g})", r"\d+ \w+ 8192 tangent", "xla", "triton")
    length = max(LENGTHS)
    ends = np.asarray(packed(length)["segment_ids"])[0]
    found[f"pairs of a packed row / of a full one at {length}"] = float((np.bincount(ends) ** 2).sum() / length**2)
    for implementation, width in itertools.product(("mosaic", "triton"), WIDTHS):
        one, two = (milliseconds[f"{width} {case} {length} forward"].get(implementation) for case in ("packed", "full"))
        if one and two:
            found[f"time of a packed row / of a full one, {implementation} {width}"] = one / two
    return found


CHAIN = 10
"""Calls in one program, so that the start of a program does not count."""


def repeated(function: Callable) -> Callable:
    """CHAIN calls, each waiting for the one before it."""

    def run(query, *rest):
        def step(query, _):
            found = jax.lax.optimization_barrier(jax.tree.leaves(function(query, *rest)))  # all of each is computed
            return query + 0 * sum(x.ravel()[0] for x in found).astype(query.dtype), None

        return jax.lax.scan(step, query, length=CHAIN)[0]

    return run


def main(options: Options) -> None:
    if options.long_run:
        long_run()
    elif options.cpu:
        on_cpu(options)
    elif jax.default_backend() == "gpu":
        on_gpu(options)
    else:
        sys.exit("benchmarks/attention.py measures GPU kernels, and JAX finds no GPU: use --cpu for the CPU")


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    if chosen.cpu:
        jax.config.update("jax_platforms", "cpu")
    main(chosen)
