"""The tuner writes the best tiles of each kernel where the kernels will look for them."""

import functools
import json

import jax
import pytest

from pallas_kernels import tuning
from pallas_kernels.dot_product_attention import xla
from pallas_kernels.mosaic import config as mosaic
from pallas_kernels.triton import config as triton
from tools import tune

KERNEL = next(kernel for kernel in tune.kernels() if kernel.name == "triton/dq/64")


def table(path):
    return json.loads(path.read_text())["kernels"]


def test_the_fastest_tiles_are_written_and_the_rows_of_other_kernels_stay(tmp_path):
    path = tmp_path / "tuned" / "some_gpu.json"
    tune.tune([KERNEL], lambda kernel: lambda tiles: abs(tiles.block_q - 32) + abs(tiles.block_k - 32) + 1.0, path)
    row = table(path)["triton/dq/64"]
    assert (row["tiles"]["block_q"], row["tiles"]["block_k"], row["milliseconds"]) == (32, 32, 1.0)
    other = next(kernel for kernel in tune.kernels() if kernel.name == "mosaic/dkv/64")
    tune.tune([other], lambda kernel: lambda tiles: tiles.stages, path)
    assert table(path)["triton/dq/64"] == row
    assert table(path)["mosaic/dkv/64"]["tiles"] == dict(block_q=64, block_k=128, stages=1)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_gain_below_the_noise_keeps_the_tiles_of_the_table(tmp_path):
    path = tmp_path / "some_gpu.json"
    tune.tune([KERNEL], lambda kernel: lambda tiles: 1.0 if tiles == kernel.start else 0.99, path)
    assert triton.Config(**table(path)["triton/dq/64"]["tiles"]) == KERNEL.start


@pytest.mark.parametrize("kernel", tune.kernels(), ids=lambda kernel: kernel.name)
def test_the_problem_of_a_kernel_asks_for_its_own_entry(kernel, monkeypatch):
    if kernel.name.startswith("triton"):
        pytest.importorskip("jax_triton", reason="jax-triton is not installed")
    monkeypatch.setattr(tune, "TOKENS", 2048)
    monkeypatch.setattr(tune, "LENGTH", 2048)
    monkeypatch.setattr(tune, "HIDDEN", 1024)
    asked = set()
    for config in (triton, mosaic):
        monkeypatch.setattr(config, "measured", asked.add)
    operands = jax.eval_shape(kernel.operands)
    outputs = jax.eval_shape(lambda x: xla.RULES.forward(x, kernel.settings), operands)
    found = jax.eval_shape(functools.partial(kernel.run, kernel.rules), operands, outputs)
    expected = jax.eval_shape(functools.partial(kernel.run, xla.RULES), operands, outputs)
    assert kernel.name in asked
    assert [x.shape for x in jax.tree.leaves(found)] == [x.shape for x in jax.tree.leaves(expected)]


def test_the_front_door_refuses_in_one_sentence(capsys):
    assert tune.main(["--only", "no such kernel"]) == 2
    assert "no kernel has such a name" in capsys.readouterr().err
    assert tune.main([]) == 2
    assert "JAX runs on cpu" in capsys.readouterr().err
    assert tune.main(["--list", "--only", "triton/dq/64$"]) == 0
    assert capsys.readouterr().out.startswith("triton/dq/64: Config(block_q=128")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["triton/forward/64", "mosaic/forward/64"])
def test_a_kernel_is_tuned_on_this_gpu(name, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    assert tune.main(["--only", f"{name}$"]) == 0
    (file,) = tmp_path.iterdir()
    assert table(file)[name]["gain"] >= 1
