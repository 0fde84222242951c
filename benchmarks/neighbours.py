"""The neighbours of attention against the ways they are usually written in JAX: time and memory of value and gradient.

    python benchmarks/neighbours.py                 --rounds 10 --only norm rotary grouped cross_entropy

The usual ways: `layer_norm` and modulation in jax.numpy, differentiated by autodiff; rotary embedding by concatenation;
`jax.lax.ragged_dot`; all logits, then their cross-entropy. On a GPU the Triton kernels run beside them. All forms of an
operation take turns and are checked to agree first. Memory is what the compiled program takes beside its arguments.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import side_by_side as sbs
import tyro

from pallas_kernels.neighbours.cross_entropy import linear_cross_entropy
from pallas_kernels.neighbours.grouped_matmul import grouped_matmul
from pallas_kernels.neighbours.norm import residual_layer_norm
from pallas_kernels.neighbours.rotary import angles, qk_norm_rotary

GPU = jax.default_backend() == "gpu"
DTYPE = jnp.bfloat16 if GPU else jnp.float32

Forms = dict[str, Callable]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    rounds: int = 10
    """Turns that each form takes, of 3 calls each."""
    only: tuple[Literal["norm", "rotary", "grouped", "cross_entropy"], ...] = (
        "norm",
        "rotary",
        "grouped",
        "cross_entropy",
    )


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, DTYPE)


def implementations(function: Callable) -> Forms:
    forms = {"ours": functools.partial(function, implementation="xla")}
    return forms | ({"ours, Triton": functools.partial(function, implementation="triton")} if GPU else {})


def norm() -> tuple[Forms, tuple, str]:
    """x + gate * branch, then adaLN: between the two halves of a DiT block."""
    batch, tokens, width = (16, 1024, 1536) if GPU else (4, 256, 384)

    def usual(x, branch, gate, scale, shift):
        stream = x + gate[:, None] * branch
        wide = stream.astype(jnp.float32)
        n = jax.nn.standardize(wide, epsilon=1e-6).astype(x.dtype)
        return stream, n * (1 + scale[:, None]) + shift[:, None]

    def ours(x, branch, gate, scale, shift, implementation):
        return residual_layer_norm(x, branch, gate, scale=scale, shift=shift, implementation=implementation)

    arrays = (*(normal(i, batch, tokens, width) for i in (0, 1)), *(normal(i, batch, width) for i in (2, 3, 4)))
    return {"usual": usual} | implementations(ours), arrays, f"({batch}, {tokens}, {width})"


def rotary() -> tuple[Forms, tuple, str]:
    """qk-norm and rotary embedding, halves, as in a language model with grouped queries."""
    batch, tokens, heads, width = (4, 4096, 32, 128) if GPU else (2, 512, 8, 64)
    cos, sin = (x[None] for x in angles(jnp.arange(tokens), width))

    def turned(x, weight):
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6) * weight
        a, b = jnp.split(wide, 2, axis=-1)
        c, s = cos[:, :, None], sin[:, :, None]
        return jnp.concatenate([a * c - b * s, a * s + b * c], axis=-1).astype(x.dtype)

    def usual(query, key, query_weight, key_weight):
        return turned(query, query_weight), turned(key, key_weight)

    def ours(query, key, query_weight, key_weight, implementation):
        given = (query, key, cos, sin, query_weight, key_weight)
        return qk_norm_rotary(*given, layout="halves", implementation=implementation)

    arrays = normal(0, batch, tokens, heads, width), normal(1, batch, tokens, heads // 4, width)
    arrays += normal(2, width), normal(3, width)
    return {"usual": usual} | implementations(ours), arrays, f"({batch}, {tokens}, {heads}, {width})"


def grouped() -> tuple[Forms, tuple, str]:
    """One matrix of each expert; the busiest expert has several times the rows of the idlest."""
    rows, experts, inner, columns = (16384, 64, 2048, 1024) if GPU else (2048, 16, 256, 512)
    share = np.random.default_rng(0).dirichlet(np.full(experts, 5.0))
    sizes = jnp.asarray(np.random.default_rng(1).multinomial(rows, share), jnp.int32)
    forms = {"lax.ragged_dot": lambda lhs, rhs: jax.lax.ragged_dot(lhs, rhs, sizes)}
    forms |= implementations(
        lambda lhs, rhs, implementation: grouped_matmul(lhs, rhs, sizes, implementation=implementation)
    )
    arrays = normal(0, rows, inner), normal(1, experts, inner, columns) / inner**0.5
    return forms, arrays, f"({rows}, {inner}) x ({experts}, {inner}, {columns})"


def cross_entropy() -> tuple[Forms, tuple, str]:
    """The head of a language model."""
    tokens, width, vocabulary = (8192, 2048, 128_256) if GPU else (1024, 256, 32_000)
    labels = jax.random.randint(jax.random.key(9), (tokens,), 0, vocabulary)

    def usual(hidden, weights):
        logits = (hidden @ weights).astype(jnp.float32)
        picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - picked

    forms = {"all logits": usual, "ours": lambda hidden, weights: linear_cross_entropy(hidden, weights, labels)[0]}
    arrays = normal(0, tokens, width), normal(1, width, vocabulary) / width**0.5
    return forms, arrays, f"({tokens}, {width}) x ({width}, {vocabulary})"


def gradient(function: Callable) -> Callable:
    """The outputs, and their pullback of themselves to all arguments."""

    def run(*arrays):
        outputs, pullback = jax.vjp(function, *arrays)
        return outputs, pullback(outputs)

    return run


def measured(forms: Forms, arrays: tuple, rounds: int) -> dict[str, tuple[float, float]]:
    """(milliseconds, MiB beside the arguments) of each form; they must agree."""
    programs = {name: jax.jit(form).lower(*arrays).compile() for name, form in forms.items()}
    outputs = [jax.tree.leaves(program(*arrays)) for program in programs.values()]
    for found in outputs[1:]:
        for mine, first in zip(found, outputs[0], strict=True):
            mine, first = (np.asarray(x, np.float32) for x in (mine, first))
            bound = (5e-2 if GPU else 1e-4) * max(1, np.abs(first).max())
            np.testing.assert_allclose(mine, first, rtol=0, atol=bound)
    calls = {name: functools.partial(run, program, arrays) for name, program in programs.items()}
    seconds = sbs.medians(rounds, 3, **calls)
    return {name: (1e3 * seconds[name], memory(program)) for name, program in programs.items()}


def run(program: Callable, arrays: tuple) -> None:
    jax.block_until_ready(program(*arrays))


def memory(program: jax.stages.Compiled) -> float:
    analysis = program.memory_analysis()
    return (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 2**20


def main(options: Options) -> None:
    cases = {"norm": norm, "rotary": rotary, "grouped": grouped, "cross_entropy": cross_entropy}
    rows, figures = [], {}
    for name in options.only:
        forms, arrays, shape = cases[name]()
        value = measured(forms, arrays, options.rounds)
        grad = measured({form: gradient(function) for form, function in forms.items()}, arrays, options.rounds)
        rows.append([f"{name} {shape}", "", "", "", ""])
        for form in forms:
            rows.append([form, *value[form], *grad[form]])
            figures |= {f"{name}, {form}": [round(x, 3) for x in (*value[form], *grad[form])]}
    columns = ["operation and form", "value, ms", "MiB", "gradient, ms", "MiB"]
    sbs.print_table(f"Neighbours of attention, {jnp.dtype(DTYPE).name}", columns, rows)
    sbs.print_result(columns=columns[1:], **figures)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
