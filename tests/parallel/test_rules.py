"""Laws of the rules: what lies where, that it divides, and that a divided step is the step of one device."""

import functools
import math
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.models.mmdit import MMDiT
from genjax.nn.linear import STACKED, Linear
from genjax.nn.mlp import MLP
from genjax.parallel.mesh import AXES, Mesh, batch_sharding, replicated
from genjax.parallel.rules import (
    RULES,
    by_rows,
    bytes_per_device,
    divided_over,
    logical_axes,
    mirrored,
    spec,
    state_shardings,
    unbox,
)

NAMES = [name for name, _ in RULES]


@pytest.mark.parametrize(
    ("sizes", "names", "shape", "expected"),
    [
        ((1, 4, 2), ("embed", "mlp"), (64, 256), P("fsdp", "tensor")),
        ((1, 4, 2), ("mlp", "embed"), (256, 64), P("tensor", "fsdp")),
        ((1, 4, 2), ("layers", "embed", "heads"), (8, 64, 192), P(None, "fsdp", "tensor")),
        ((1, 4, 2), ("vocab", "embed"), (257, 64), P(None, "fsdp")),  # 257 is odd
        ((1, 4, 2), ("vocab", "embed"), (257, 66), P()),  # 66 is no multiple of 4
        ((1, 4, 2), ("embed", "mlp"), (6, 256), P(None, "tensor")),
        ((1, 4, 1), ("embed", "mlp"), (6, 256), P(None, "fsdp")),  # the longest other axis
        ((1, 4, 1), (None, None, None), (64, 128, 16), P(None, "fsdp")),
        ((1, 4, 1), ("layers", None), (4096, 1025), P()),  # never the layers
        ((1, 4, 1), ("layers", "embed"), (4096, 1020), P()),  # in each layer too small
        ((1, 4, 1), ("embed",), (1020,), P()),
        ((1, 4, 1), ("embed",), (1024,), P("fsdp")),
        ((4, 1, 1), ("embed", "mlp"), (64, 256), P()),
        ((1, 2, 2), ("heads", "mlp"), (64, 256), P("tensor", "fsdp")),  # heads comes first in the table
    ],
)
def test_the_table_its_fallback_and_what_stays_whole(sizes, names, shape, expected):
    found = spec(dict(zip(AXES, sizes, strict=True)), names, shape)
    pad = (None,) * len(shape)
    assert (*found, *pad)[: len(shape)] == (*expected, *pad)[: len(shape)]


@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 3, 4, 8])] * 3),
    axes=st.lists(st.tuples(st.sampled_from([None, *NAMES]), st.integers(1, 4000)), max_size=4),
    whole_below=st.sampled_from([1, 2**10]),
)
def test_every_spec_divides_and_takes_a_mesh_axis_once(sizes, axes, whole_below):
    mesh = dict(zip(AXES, sizes, strict=True))
    names, shape = tuple(name for name, _ in axes), tuple(size for _, size in axes)
    taken = []
    for size, entry in zip(shape, spec(mesh, names, shape, whole_below=whole_below), strict=False):
        over = (entry,) if isinstance(entry, str) else entry or ()
        assert size % math.prod(mesh[axis] for axis in over) == 0
        taken += over
    assert len(taken) == len(set(taken))


def test_a_name_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="an axis is named 'width', and the names with a rule are batch, vocab, heads"):
        spec({"fsdp": 2}, ("width",), (4096,))


# ---------------------------------------------------------------------- states of networks


class ScannedMLP(nn.Module):
    """Two residual blocks, run by a scan."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x):
                return x + MLP(32, 16, name="mlp")(x), None

        options = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=2, metadata_params=STACKED)
        x, _ = nn.scan(Block, **options)(name="blocks")(Linear(16, (None, "embed"), name="first")(x))
        return Linear(3, ("embed", None), name="last")(x)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


NETWORKS = {
    "scanned MLP": (ScannedMLP(), (normal(0, 8, 5),), normal(1, 8, 3)),
    "MM-DiT": (
        MMDiT(channels=1, depth=3, num_heads=2, head_dim=8, pos_embed_max_size=4, pos_embed_base_size=4),
        (normal(0, 8, 4, 4, 1), np.linspace(0.1, 0.9, 8, dtype=np.float32), normal(2, 8, 3, 6), normal(3, 8, 5)),
        normal(1, 8, 4, 4, 1),
    ),
}
MESHES = {"fsdp 4": Mesh(fsdp=4), "fsdp 2 x tensor 2": Mesh(fsdp=2, tensor=2), "data 2 x fsdp 2": Mesh(2, fsdp=2)}
MESHES["data 4"] = Mesh()
SMALL = 2**5
"""What stays whole in networks as small as these."""

# These networks take longer to compile than to run.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def boxed(name):
    network, inputs, _ = NETWORKS[name]
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


@functools.cache
def weights(name):
    """Random everywhere: fresh gates are closed."""
    leaves, tree = jax.tree.flatten(unbox(boxed(name)))
    return tree.unflatten([0.2 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def test_every_leaf_of_a_network_says_its_axes_once():
    for name in NETWORKS:
        axes = logical_axes(boxed(name))
        shapes = jax.tree.map(lambda leaf: leaf.shape, unbox(boxed(name)))
        leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
        assert len(leaves) == len(jax.tree.leaves(boxed(name)))
        jax.tree.map(lambda shape, names: None if len(shape) == len(names) else pytest.fail(), shapes, axes,
                     is_leaf=lambda x: isinstance(x, tuple))  # fmt: skip
    blocks = logical_axes(boxed("MM-DiT"))["blocks"]["image"]
    assert blocks["attn"]["qkv"] == {"kernel": ("layers", "embed", "heads"), "bias": ("layers", "heads")}
    assert blocks["mlp"]["fc2"] == {"kernel": ("layers", "mlp", "embed"), "bias": ("layers", "embed")}


def test_a_parameter_without_a_box_has_no_names_and_is_divided_by_its_shape():
    tree = {"raw": jax.ShapeDtypeStruct((8, 256), np.float32)}
    assert logical_axes(tree) == {"raw": (None, None)}
    assert state_shardings(MESHES["fsdp 4"].build(), tree)["raw"].spec == P(None, "fsdp")


def test_four_devices_hold_a_quarter_each_of_what_divides():
    mesh = MESHES["fsdp 4"].build()
    tree = jax.eval_shape(MMDiT(depth=2, num_heads=4, head_dim=16, channels=4).init, jax.random.key(0), *(
        jax.ShapeDtypeStruct(shape, np.float32) for shape in [(1, 4, 4, 4), (1,), (1, 3, 64), (1, 64)]
    ))["params"]  # fmt: skip
    shardings = state_shardings(mesh, tree)
    matrices = {"kernel": 0, "other": 0}
    for (path, sharding), leaf in zip(jax.tree.leaves_with_path(shardings), jax.tree.leaves(tree), strict=True):
        kind = "kernel" if sharding.spec != P() else "other"
        held = bytes_per_device(sharding, leaf)
        assert held == leaf.size * 4 // (4 if kind == "kernel" else 1), path
        matrices[kind] += leaf.size * 4
    assert bytes_per_device(shardings, tree) == matrices["kernel"] // 4 + matrices["other"]
    assert matrices["other"] < 0.02 * matrices["kernel"]
    placed = jax.tree.map(lambda s, leaf: jax.device_put(np.zeros(leaf.shape, np.float32), s), shardings, unbox(tree))
    on_first = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert on_first == bytes_per_device(shardings, tree)


OPTIMISERS = {
    "sgd": optax.sgd(0.05, momentum=0.9),
    "adamw": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.01, 0.0, 9))),
    "two of them": optax.multi_transform(
        {"a": optax.adam(1e-2), "b": optax.sgd(1e-2)}, lambda p: {k: "ab"[k == "last"] for k in p}
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMISERS.values(), ids=OPTIMISERS)
def test_moments_and_averages_lie_as_their_parameters_and_counters_are_whole(optimizer):
    mesh, params = MESHES["fsdp 2 x tensor 2"].build(), unbox(boxed("scanned MLP"))
    shardings = state_shardings(mesh, boxed("scanned MLP"), whole_below=SMALL)
    state = {"params": params, "ema": params, "optimizer": jax.eval_shape(optimizer.init, params), "step": 0}
    found = mirrored(state, params, shardings)
    assert found["params"] == found["ema"] == shardings
    assert found["step"] == replicated(mesh)
    for path, sharding in jax.tree.leaves_with_path(found["optimizer"]):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key not in ("a", "b")]
        expected = functools.reduce(lambda tree, name: tree[name], names, shardings) if names else replicated(mesh)
        assert sharding == expected, path


# ---------------------------------------------------------------------- steps


def steps(name, optimizer, mesh=None, count=5):
    """(losses, state, program) of a toy run: on one device, or divided over a mesh."""
    network, inputs, target = NETWORKS[name]

    def update(state, batch):
        params, moments = state
        inputs, target = batch

        def loss(params):
            return jnp.square(network.apply({"params": params}, *inputs) - target).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        changes, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, changes), moments), value

    def divided_update(state, batch):
        with divided_over(mesh):
            return update(state, batch)

    state, batch = (weights(name), optimizer.init(weights(name))), (inputs, target)
    if mesh is None:
        program = jax.jit(update, compiler_options=FAST)
    else:
        params = state_shardings(mesh, boxed(name), whole_below=SMALL)
        shardings = mirrored(state, weights(name), params)
        state, batch = jax.device_put(state, shardings), jax.device_put(batch, batch_sharding(mesh))
        out = (shardings, replicated(mesh))
        program = jax.jit(divided_update, donate_argnums=0, out_shardings=out, compiler_options=FAST)
    compiled, losses = program.lower(state, batch).compile(), []
    for _ in range(count):
        state, loss = compiled(state, batch)
        losses.append(loss)
    return np.array(losses), state, compiled.as_text()


@functools.cache
def alone(name, optimizer):
    return steps(name, OPTIMISERS[optimizer])[:2]


RUNS = [
    ("scanned MLP", "sgd", "data 4"),
    pytest.param("scanned MLP", "sgd", "data 2 x fsdp 2", marks=pytest.mark.slow),
    pytest.param("scanned MLP", "adamw", "fsdp 4", marks=pytest.mark.slow),
    ("scanned MLP", "adamw", "fsdp 2 x tensor 2"),
    pytest.param("MM-DiT", "sgd", "fsdp 4", marks=pytest.mark.slow),
    pytest.param("MM-DiT", "sgd", "fsdp 2 x tensor 2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "optimizer", "mesh"), RUNS)
def test_a_divided_step_is_the_step_of_one_device(name, optimizer, mesh):
    expected_losses, expected = alone(name, optimizer)
    mesh = MESHES[mesh].build()
    losses, state, program = steps(name, OPTIMISERS[optimizer], mesh)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    chex.assert_trees_all_close(state, expected, rtol=0, atol=1e-5)

    # The state stays divided.
    shardings = mirrored(state, weights(name), state_shardings(mesh, boxed(name), whole_below=SMALL))
    jax.tree.map(
        lambda leaf, s: None if leaf.sharding.is_equivalent_to(s, leaf.ndim) else pytest.fail(), state, shardings
    )
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert held == bytes_per_device(shardings, state)
    assert held < 1.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / (
        mesh.shape["fsdp"] * mesh.shape["tensor"]
    )

    # The CPU backend scatters no sum: it all-reduces gradients and cuts each device's part out of them. Others do.
    collectives = set(re.findall(r"\b(all-gather|reduce-scatter|all-reduce)\(", program))
    assert collectives & {"reduce-scatter", "all-reduce"}
    assert ("all-gather" in collectives) == (mesh.shape["fsdp"] > 1)


@pytest.mark.parametrize(("rows", "each"), [(8, 2), (6, 6)])
def test_with_divided_parameters_each_device_computes_its_own_rows(rows, each):
    """Or all of them, where they do not divide; with whole parameters they stay as they are."""
    x, w = np.arange(rows * 4.0, dtype=np.float32).reshape(rows, 4), np.arange(16.0, dtype=np.float32).reshape(4, 4)
    product, shares, traced = jax.jit(jnp.matmul), [], []

    def spied(w, x):
        shares.extend({shard.data.shape[0] for shard in x.addressable_shards} if isinstance(x, jax.Array) else [len(x)])
        traced.append(dict(jax.sharding.get_abstract_mesh().shape))
        return product(x, w)

    mesh = Mesh(data=2, fsdp=2).build()
    for place in (P("fsdp"), P()):
        np.testing.assert_array_equal(by_rows(spied, jax.device_put(w, NamedSharding(mesh, place)), x), x @ w)
    assert shares == [each, rows]
    assert traced == [dict(mesh.shape), {}]  # Networks divide their kernels where they find the mesh (divided_over).
