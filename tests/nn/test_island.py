"""Laws of islands: each device runs on its own part, and no number changes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from genjax.nn.attention import attention
from genjax.nn.island import lying_on, on_own_part
from genjax.nn.norms import RMSNorm, layer_norm, residual_layer_norm
from pallas_kernels import Mask, scheduled

RULES = (("batch", ("data", "fsdp")), ("heads", "tensor"))
ROWS = ("batch", None)

# These programs take longer to compile than to run.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def mesh_of(data, fsdp, tensor, kind=AxisType.Auto):
    devices = np.asarray(jax.devices()[: data * fsdp * tensor]).reshape(data, fsdp, tensor)
    return Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(kind,) * 3)


def traced_on(mesh, function, rules=RULES):
    """The function, as a part of a program that XLA divides over the mesh."""

    def program(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
            return function(*arguments)

    return program


def divided(function, mesh, *arguments, rules=RULES):
    """function(*arguments), divided by XLA over the mesh."""
    program = traced_on(mesh, function, rules)
    return jit(program, out_shardings=NamedSharding(mesh, PartitionSpec()))(*arguments)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def seen_shapes(mesh, *shapes, axes, rules=RULES):
    """The shapes of the parts that a function on an island is given."""
    seen = []

    def look(*parts):
        seen.extend(part.shape for part in parts)
        return parts[0]

    divided(lambda *xs: on_own_part(look, xs, axes, axes[0]), mesh, *map(jnp.zeros, shapes), rules=rules)
    return seen


@pytest.mark.parametrize(
    ("sizes", "shape", "part"),
    [
        ((2, 2, 1), (8, 3), (2, 3)),
        ((1, 2, 2), (8, 3), (4, 3)),
        ((2, 2, 1), (6, 3), (3, 3)),  # over data alone
        ((2, 2, 1), (7, 3), (7, 3)),
        ((2, 2, 1), (1, 3), (1, 3)),
        ((1, 1, 1), (8, 3), (8, 3)),
    ],
)
def test_rows_are_divided_over_as_many_axes_as_divide_them(sizes, shape, part):
    assert seen_shapes(mesh_of(*sizes), shape, axes=[ROWS]) == [part]


def test_an_axis_of_size_one_is_shared_and_a_name_is_divided_for_all_arguments_or_for_none():
    four = ("batch", "heads")
    assert seen_shapes(mesh_of(1, 2, 2), (4, 6), (1, 2), (4, 1), axes=[four] * 3) == [(2, 3), (1, 1), (2, 1)]
    assert seen_shapes(mesh_of(1, 2, 2), (4, 6), (4, 3), axes=[four] * 2) == [(2, 6), (2, 3)]


def test_without_rules_without_a_mesh_or_in_a_shard_map_it_is_a_plain_call():
    mesh, x = mesh_of(2, 2, 1), jnp.zeros((8, 3))
    assert seen_shapes(mesh, (8, 3), axes=[ROWS], rules=()) == [(8, 3)]
    programs = []

    def call(x):
        programs.append(str(jax.make_jaxpr(lambda x: on_own_part(jnp.sin, [x], [ROWS], ROWS))(x)))
        return x

    with nn.logical_axis_rules(RULES):
        call(x)
        split = PartitionSpec(("data", "fsdp"))
        jax.jit(jax.shard_map(call, mesh=mesh, in_specs=split, out_specs=split))(x)
    assert len(programs) == 2 and not any("shard_map" in program for program in programs)


def test_tokens_lie_where_they_are_told_to_and_stay_as_they_are_where_the_mesh_does_not_divide_them():
    mesh = mesh_of(2, 2, 1)
    for rows, spec in [(8, PartitionSpec(("data", "fsdp"))), (7, PartitionSpec())]:
        x = jax.device_put(np.ones((rows, 4), np.float32), NamedSharding(mesh, PartitionSpec()))
        y = jit(traced_on(mesh, lambda x: lying_on(2 * x, ROWS)))(x)
        assert y.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
        np.testing.assert_array_equal(y, 2 * x)


# ---------------------------------------------------------------------- kernels: the same numbers on any mesh

B, T, S, N, H = 4, 5, 6, 4, 8
SEGMENTS = jnp.asarray(np.random.default_rng(3).integers(-1, 2, (B, S)))
OPTIONS = {
    "fewer heads of keys and lengths": dict(
        keys=2, query_seq_lengths=jnp.array([5, 1, 3, 2]), key_value_seq_lengths=jnp.array([6, 2, 1, 4])
    ),
    "one head of keys and a bias of all heads": dict(keys=1, bias=normal(B, 1, T, S, seed=4)),
    "a bias of all samples and booleans": dict(bias=normal(1, N, T, S, seed=4), mask=normal(T, S, seed=5) > -0.5),
    "segments, positions and sinks": dict(
        segment_ids=(SEGMENTS[0, :T], SEGMENTS[0]),
        positions=(SEGMENTS[:, :T], SEGMENTS),
        is_causal=True,
        sinks=normal(N, seed=5),
        return_residual=True,
    ),
    "a mask with schedules": dict(
        mask=scheduled(
            Mask(key_end=1 + jnp.arange(B * T).reshape(B, T) % S, dense=normal(B, 1, T, S, seed=6) > -1),
            *(jax.ShapeDtypeStruct((B, length, N, H), jnp.float32) for length in (T, S, S)),
        )
    ),
}


def values_and_gradients(options):
    options = dict(options)
    keys = options.pop("keys", N)
    arrays = normal(B, T, N, H), normal(B, S, keys, H, seed=1), normal(B, S, keys, H, seed=2)

    def run(*arrays):
        found, pullback = jax.vjp(lambda *qkv: attention(*qkv, **options), *arrays)
        return found, pullback(jax.tree.map(jnp.cos, found))

    return run, arrays


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attention_and_its_gradients_are_the_same_on_a_mesh(options):
    run, arrays = values_and_gradients(options)
    alone, together = jit(run)(*arrays), divided(run, mesh_of(1, 2, 2), *arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), together, alone)


def test_attention_of_heads_that_the_mesh_does_not_divide_is_the_same():
    run, arrays = values_and_gradients({})
    arrays = [x[:3, :, :3] for x in arrays]
    alone, together = jit(run)(*arrays), divided(run, mesh_of(1, 2, 2), *arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), together, alone)


def test_each_device_attends_to_its_own_samples_and_heads():
    run, arrays = values_and_gradients({})
    program = str(jax.make_jaxpr(traced_on(mesh_of(1, 2, 2), run))(*arrays))
    kernels = [line for line in program.splitlines() if "attention_forward[" in line]
    assert kernels and all(f"f32[{B // 2},{T},{N // 2},{H}]" in line for line in kernels)


def norms(x, heads, vector, tokens):
    scale = RMSNorm().apply({"params": {"scale": 1 + vector[0, 0, :H]}}, heads)
    shared = layer_norm(x, vector[0, 0], scale=vector[:1], shift=vector[:1, 0])
    own = residual_layer_norm(x, tokens, vector, scale=vector, shift=tokens)
    return scale, shared, own, layer_norm(x[0])


def test_norms_and_their_gradients_are_the_same_on_a_mesh():
    arrays = normal(B, T, 16), normal(B, T, N, H, seed=1), normal(B, 1, 16, seed=2), normal(B, T, 16, seed=3)

    def run(*arrays):
        found, pullback = jax.vjp(norms, *arrays)
        return found, pullback(jax.tree.map(jnp.cos, found))

    alone, together = jit(run)(*arrays), divided(run, mesh_of(1, 2, 2), *arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), together, alone)
    program = str(jax.make_jaxpr(traced_on(mesh_of(1, 2, 2), norms))(*arrays))
    assert f"f32[{B // 2},{T},{N // 2},{H}]" in program
