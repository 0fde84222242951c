"""Tiles are bounded whatever the batch and the heads, and how many heads one holds does not matter."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dot_product_attention import cut, xla
from pallas_kernels.dot_product_attention.problem import Settings
from tests.pallas_kernels.dot_product_attention import problems

FEATURES = {
    "bias of each, mask of all": {"bias": (4, 6, 1, 12), "dense": (1, 1, 9, 12)},
    "bias of all, mask of each sample": {"bias": (1, 1, 9, 12), "dense": (4, 1, 9, 12)},
}


def problem_of(name):
    """Four samples of six query heads, two for each of three key heads."""
    operands, _ = problems.draw([problems.segments, problems.sinks], B=4, T=9, S=12, K=6, H=4, seed=0)
    rng = np.random.default_rng(1)
    operands |= {n: rng.normal(size=s) > -1 if n == "dense" else rng.normal(size=s) for n, s in FEATURES[name].items()}
    operands |= {n: operands[n][:, :, :3] for n in ("key", "value")}
    return problems.cast(operands, jnp.float32), Settings(scale=0.5, right=3)


@pytest.mark.parametrize("name", FEATURES)
def test_how_many_heads_a_tile_holds_does_not_matter(name):
    operands, setting = problem_of(name)
    floats = {n: x for n, x in operands.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    @functools.partial(problems.compiled, static_argnums=0)
    def everything(units, operands):
        tiles = xla.Tiles(4, 8, units)
        outputs = xla.forward(operands, setting, tiles)
        moved = xla.tangent(floats, operands, outputs, setting, tiles)
        return outputs, moved, xla.backward(outputs, operands, outputs, tuple(floats), setting, tiles)

    whole = everything(None, operands)
    for units in (2, 6):  # heads of one sample; two samples, with all of their heads
        for a, b in zip(jax.tree.leaves(everything(units, operands)), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "batch, heads, key_heads", [(1, 1, 1), (64, 16, 16), (127, 24, 8), (1, 4096, 1), (4096, 64, 64)]
)
@pytest.mark.parametrize("length", [77, 1024, 4429])
def test_a_tile_on_a_gpu_is_bounded_whatever_the_batch_and_the_heads(batch, heads, key_heads, length):
    shapes = {
        "query": (batch, length, heads, 64),
        "key": (1, length, key_heads, 64),
        "value": (1, length, key_heads, 64),
    }
    operands = {n: jax.ShapeDtypeStruct(s, jnp.bfloat16) for n, s in shapes.items()}
    settings = Settings(scale=0.125)
    for tiles in (cut.tiles_for("gpu", operands, settings), cut.batched(operands, skip=False)):
        grid = cut.Grid(batch, length, length, heads, key_heads, 1, 1)
        held = math.prod(cut.units_of(grid, tiles)) * heads // key_heads * tiles.rows * tiles.columns
        assert held <= cut.LOGITS


def test_what_a_tile_holds_is_what_the_program_holds(monkeypatch):
    monkeypatch.setattr(cut, "LOGITS", 2**16)

    def scratch(batch):
        x = jax.ShapeDtypeStruct((batch, 256, 2, 4), jnp.float32)
        lse = jax.ShapeDtypeStruct((batch, 256, 2), jnp.float32)
        operands = dict.fromkeys(("query", "key", "value"), x)
        tiles = cut.batched(operands)
        names = tuple(operands)
        run = lambda x, out, lse: xla.backward((out, lse), x, (out, lse), names, Settings(scale=0.5), tiles)  # noqa: E731
        program = problems.compiled(run).lower(operands, x, lse).compile()
        return program.memory_analysis().temp_size_in_bytes - 4 * math.prod(x.shape) * 8  # arrays, arranged

    assert scratch(64) < 2 * 2**20  # the logits of all heads would be 32 MiB
