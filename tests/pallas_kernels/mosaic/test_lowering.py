"""The Hopper kernels are lowered for CUDA on any machine; what they cannot do is refused in one sentence."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from pallas_kernels.dot_product_attention.dense import attend
from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.mosaic import prepare
from pallas_kernels.mosaic.backward import backward
from pallas_kernels.mosaic.config import CORES, SHARED_MEMORY, TILE, TUNED, Config, Order
from pallas_kernels.mosaic.forward import forward
from pallas_kernels.mosaic.resources import MASKS, functions, problem

HEADS = [(head, kind) for head in TUNED for kind in MASKS]


def for_a_hopper_gpu():
    """From jax 0.11 on the GPU to lower for has to be named; before it is assumed to be a Hopper."""
    try:
        from jax.sharding import AbstractDevice
    except ImportError:
        return contextlib.nullcontext()
    try:
        device = AbstractDevice(device_kind="NVIDIA H200", platform="gpu", num_cores=CORES)
        return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))
    except TypeError:
        return contextlib.nullcontext()


def lowered(function, *shapes) -> str:
    with for_a_hopper_gpu():
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(("head", "kind"), HEADS)
def test_every_tuned_kernel_is_lowered_for_cuda(head, kind):
    for name, (function, shapes) in functions(*problem(head, kind)).items():
        assert f"attention_{name}" in lowered(function, *shapes)


@pytest.mark.parametrize("lengths", [(1, 1), (77, 333), (4429, 4429)])
def test_any_length_is_lowered_for_cuda(lengths):
    operands, settings = problem(64, "causal")
    for name, x in operands.items():
        length = lengths[0] if name == "query" else lengths[1]
        operands[name] = jax.ShapeDtypeStruct((2, length, *x.shape[2:]), x.dtype)
    for name, (function, shapes) in functions(operands, settings).items():
        assert f"attention_{name}" in lowered(function, *shapes)


@pytest.mark.parametrize("shared", ["query", "key"])
def test_cotangents_have_the_shapes_of_their_operands_also_of_those_the_batch_shares(shared):
    operands, settings = problem(64, "packed", length=100)
    operands[shared] = jax.ShapeDtypeStruct((1, *operands[shared].shape[1:]), jnp.bfloat16)
    outputs = jax.eval_shape(lambda given: forward(given, settings), operands)
    assert [x.shape for x in outputs] == [(2, 100, 8, 64), (2, 100, 8)]
    wanted = ("key", "query")
    found = jax.eval_shape(lambda o, y: backward(y, o, y, wanted, settings), operands, outputs)
    assert tuple(found) == wanted
    assert all((found[n].shape, found[n].dtype) == (operands[n].shape, operands[n].dtype) for n in wanted)
    assert "attention_dkv" in lowered(lambda o, y: backward(y, o, y, wanted, settings), operands, outputs)


@pytest.mark.parametrize("head", TUNED)
def test_tuned_tiles_fit_in_shared_memory(head):
    for config in TUNED[head]:
        assert config.shared_memory(head) + 3 * 1024 <= SHARED_MEMORY
        first, second = config.registers
        assert TILE * (2 * first + second) <= 65_536


@pytest.mark.parametrize("longest_last", [False, True])
def test_every_piece_of_work_is_done_once_and_the_longest_first(longest_last):
    order = Order.of(6, 5, bytes_of_pair=8 * 2**20, longest_last=longest_last)
    work = [order[n] for n in range(len(order))]
    assert sorted(work) == [(pair, tile) for pair in range(6) for tile in range(5)]
    assert order.section == 3  # of 8 MB each, in a cache that has 24 MB to give
    tiles = [tile for pair, tile in work if pair < order.section]
    assert tiles == sorted(tiles, reverse=longest_last)


def changed(**changes):
    """A supported problem of 8 tokens, with some arrays replaced."""
    operands = dict.fromkeys(("query", "key", "value"), jnp.zeros((1, 8, 1, 64), jnp.bfloat16))
    return operands | changes


REFUSED = {
    "a bias": changed(bias=jnp.zeros((1, 1, 8, 8))),
    "sinks": changed(sinks=jnp.zeros((1, 1))),
    "dense": changed(dense=jnp.ones((1, 1, 8, 8), bool)),
    "ancestors": changed(ancestors=jnp.zeros((1, 8, 1), jnp.uint32), tree_start=jnp.zeros(1, jnp.int32)),
    "positions": changed(query_positions=jnp.zeros((1, 8), int), key_positions=jnp.zeros((1, 8), int)),
    "float32": changed(**{n: jnp.zeros((1, 8, 1, 64)) for n in ("query", "key", "value")}),
    "bfloat16 and float16": changed(value=jnp.zeros((1, 8, 1, 64), jnp.float16)),
    "values 128 wide": changed(value=jnp.zeros((1, 8, 1, 128), jnp.bfloat16)),
    "heads 80 wide": changed(**{n: jnp.zeros((1, 8, 1, 80), jnp.bfloat16) for n in ("query", "key", "value")}),
}


@pytest.mark.parametrize("feature", REFUSED)
def test_what_is_not_supported_is_refused_with_what_to_do(feature):
    operands = REFUSED[feature]
    sentence = f"mosaic: no support for .*{feature}.*; (use|convert)"
    with pytest.raises(NotImplementedError, match=sentence):
        forward(operands, Settings(scale=1.0))
    with pytest.raises(NotImplementedError, match=sentence):
        backward((None, None), operands, (None, None), ("query",), Settings(scale=1.0))


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(NotImplementedError, match="negate the queries"):
        forward(changed(), Settings(scale=-1.0))


@pytest.mark.parametrize(
    "version, refused",
    [((12, 8, 61), True), ((12, 9, 41), True), ((12, 9, 86), False), ((13, 0, 48), False), (None, False)],
)
def test_masks_are_refused_by_the_assembler_that_miscompiles_them(version, refused, monkeypatch):
    monkeypatch.setattr(prepare, "assembler", lambda: version)
    prepare.refuse(changed(), Settings(scale=1.0))
    if not refused:
        return prepare.refuse(changed(), Settings(scale=1.0, right=0))
    with pytest.raises(NotImplementedError, match="upgrade CUDA to 12.9.1"):
        forward(changed(), Settings(scale=1.0, right=0))


def test_the_version_of_the_assembler_is_what_it_says(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ptxas"
    program.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.9, V12.9.41'\n")
    program.chmod(0o755)
    monkeypatch.setenv("MOSAIC_GPU_CUDA_ROOT", str(tmp_path))
    assert prepare.assembler.__wrapped__() == (12, 9, 41)
    monkeypatch.setenv("MOSAIC_GPU_CUDA_ROOT", str(tmp_path / "nowhere"))
    assert prepare.assembler.__wrapped__() is None


def test_sizes_that_make_no_tile_are_refused():
    for sizes in (dict(block_q=64), dict(block_k=96), dict(stages=0)):
        with pytest.raises(ValueError, match="rows at rest"):
            Config("forward", **sizes)
    with pytest.raises(ValueError, match="accepted are forward, dq, dkv"):
        Config("tangent")


# Numbers, on a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize(("head", "kind"), HEADS)
@pytest.mark.parametrize("lengths", [(1024, 1024), (333, 717)])
def test_the_error_is_that_of_the_precision(head, kind, lengths):
    """At most twice (gradients: three times) the error of attention by its definition in the same precision."""
    if kind == "packed" and lengths[0] != lengths[1]:
        pytest.skip("documents have queries and keys of one length")
    settings, names = MASKS[kind]
    rng = np.random.default_rng(0)
    shapes = {"query": (lengths[0], 8), "key": (lengths[1], 2), "value": (lengths[1], 2)}
    exact = {name: jnp.asarray(rng.normal(size=(2, *shape, head)), jnp.float32) for name, shape in shapes.items()}
    segments = jnp.asarray(np.sort(rng.integers(0, 5, (2, lengths[0])), axis=1), jnp.int32)
    mask = dict.fromkeys(names, segments)
    dout = jnp.asarray(rng.normal(size=(2, lengths[0], 8, head)), jnp.bfloat16)
    dlse = jnp.asarray(rng.normal(size=(2, lengths[0], 8)), jnp.float32)
    rounded = {name: x.astype(jnp.bfloat16) for name, x in exact.items()}

    def by_definition(moving):
        outputs, pull = jax.vjp(lambda given: attend(given | mask, settings), moving)
        (found,) = pull((dout.astype(outputs[0].dtype), jnp.where(jnp.isneginf(outputs[1]), 0, dlse)))
        return [*outputs, *(found[name] for name in shapes)]

    with jax.default_matmul_precision("highest"):
        truth = by_definition({name: x.astype(jnp.float32) for name, x in rounded.items()})
    naive = by_definition(rounded)
    outputs = jax.jit(lambda given: forward(given | mask, settings))(rounded)
    pull = jax.jit(lambda given, outputs: backward((dout, dlse), given | mask, outputs, tuple(shapes), settings))
    found = [*outputs, *pull(rounded, outputs).values()]
    for i, name in enumerate(("out", "lse", *shapes)):
        true, plain, ours = (np.asarray(x[i], np.float32) for x in (truth, naive, found))
        seen = np.isfinite(true)
        assert (np.isfinite(ours) == seen).all(), name
        error, allowed = (np.abs(x - true)[seen].max() for x in (ours, plain))
        assert error <= (2 if i < 2 else 3) * allowed + 1e-5, name
    again = pull(rounded, outputs)
    for name, x in zip(shapes, found[2:], strict=True):
        assert (np.asarray(again[name]) == np.asarray(x)).all(), f"{name} differs from run to run"
