"""Tiles by measurement: the climb finds the best, and kernels take what was measured on their kind of GPU."""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import tuning
from pallas_kernels.mosaic import config as mosaic
from pallas_kernels.mosaic import resources
from pallas_kernels.triton import config as triton


@pytest.mark.parametrize("start", [(0, 0), (7, 3), (4, 9)])
def test_the_climb_ends_at_the_minimum_and_measures_nothing_twice(start):
    asked = []

    def cost(point):
        asked.append(point)
        return (point[0] - 4) ** 2 + 2 * (point[1] - 5) ** 2

    def neighbours(point):
        x, y = point
        return [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]

    best, costs = tuning.climb(start, neighbours, cost)
    assert best == (4, 5)
    assert sorted(asked) == sorted(costs) and len(set(asked)) == len(asked)


def test_the_climb_passes_over_what_cannot_run_and_says_so_where_nothing_can():
    costs = {1: math.inf, 2: 3.0, 3: 2.0}
    assert tuning.climb(1, lambda x: [x + 1] if x < 3 else [], costs.get)[0] == 3
    with pytest.raises(RuntimeError, match="neither 1 nor any tiles next to it"):
        tuning.climb(1, lambda x: [], costs.get)


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """A machine whose GPU is a "Test GPU 9", and a function that writes its table of measured tiles."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind="Test GPU 9")])

    def write(**rows):
        table = {"kernels": {name.replace("_", "/"): {"tiles": tiles} for name, tiles in rows.items()}}
        (tmp_path / "test_gpu_9.json").write_text(json.dumps(table))

    yield write
    tuning.read.cache_clear()


MEASURED = dict(block_q=32, block_k=16, num_warps=8, num_stages=1)


def test_kernels_take_what_was_measured_on_their_kind_of_gpu_and_the_others_the_table(on_a_gpu):
    on_a_gpu(triton_dq_64=MEASURED, mosaic_dkv_128=dict(block_q=128, block_k=128, stages=2))
    shape = jax.ShapeDtypeStruct((1, 512, 2, 64), jnp.bfloat16)
    operands = dict(query=shape, key=shape, value=shape)
    assert triton.choose("dq", operands) == triton.Config(**MEASURED)
    assert triton.choose("forward", operands) == triton.TABLE["forward", 64, None]
    assert mosaic.tuned("dkv", 128) == mosaic.Config("dkv", block_q=128, stages=2)
    assert mosaic.tuned("dq", 128) in mosaic.TUNED[128]


def test_what_was_measured_is_compiled_ahead_of_time_like_the_table(on_a_gpu):
    before = set(resources.names())
    on_a_gpu(triton_dq_64=MEASURED, mosaic_dq_64=dict(block_k=64, stages=2))
    tuning.read.cache_clear()
    assert set(resources.names()) - before == {f"dq/64/{kind}/test_gpu_9" for kind in resources.MASKS}


def test_without_a_gpu_the_table_is_taken(on_a_gpu, monkeypatch):
    on_a_gpu(triton_dq_64=MEASURED)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert tuning.measured("triton/dq/64") is None


def test_tiles_that_are_given_win(on_a_gpu):
    on_a_gpu(triton_dq_64=MEASURED, mosaic_dq_64=dict(block_k=64, stages=2))
    given = triton.Config(64, 16, 4, 2)
    shape = jax.ShapeDtypeStruct((1, 512, 2, 64), jnp.bfloat16)
    assert triton.choose("dq", dict(query=shape, key=shape, value=shape), {"dq": given}) == given
    assert mosaic.tuned("dq", 64, {"dq": mosaic.Config("dq")}) == mosaic.Config("dq")


def test_every_step_of_every_kernel_is_one_number_away_and_fits():
    for (kind, width, _), start in triton.TABLE.items():
        for tiles in triton.neighbours(kind, width, start):
            assert sum(getattr(tiles, name) != getattr(start, name) for name in MEASURED) == 1
            assert triton.estimate_shared_memory(kind, tiles, width, width) <= triton.SHARED_MEMORY
    for head, entries in mosaic.TUNED.items():
        for start in entries:
            steps = mosaic.neighbours(head, start)
            assert steps and start not in steps
            assert all(tiles.shared_memory(head) <= mosaic.SHARED_MEMORY for tiles in steps)
