"""One training step: a pure function of state and batch, jitted once, with a donated state.

    grads  = sum over devices and micro-batches of grad(sum of losses)  /  sum of weights
    params = optimiser(clip(grads)),        ema = decay ema + (1 - decay) params

Devices sum explicitly (`shard_map` and an all-reduce), micro-batches in a scan; both add sums, never means of means.
The random numbers of a sample are keyed by its place in the global batch, so they depend neither on the number of
devices nor on that of micro-batches. A step whose loss or gradient is not finite changes nothing but the counters.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.parallel.collectives import all_reduce
from genjax.parallel.mesh import DATA_AXIS, replicated
from genjax.parallel.rules import unbox
from genjax.training.ema import ema_decay, update_ema

Batch = dict[str, Array]


class TrainState(NamedTuple):
    """Everything a checkpoint must hold, but the position in the data."""

    step: Int[Array, ""]
    """Batches seen."""
    updates: Int[Array, ""]
    """Batches that changed the parameters."""
    skipped_in_a_row: Int[Array, ""]
    """Batches since the last finite one."""
    params: PyTree[Array]
    ema: PyTree[Array]
    optimizer: PyTree[Array]


class Sums(NamedTuple):
    """What a loss returns: sums over the samples it was given, all of which are divided by `weight` in the end."""

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


class Loss(Protocol):
    """The function that a researcher writes; pure. `keys` are one typed key per sample."""

    def __call__(self, params: PyTree[Array], batch: Batch, keys: Key[Array, " B"]) -> Sums: ...


def initial_state(params: PyTree[Array], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    counters = (jnp.zeros((), jnp.int32) for _ in range(3))
    # Weak types would change after the first update, and compile it twice.
    params = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), unbox(params))
    # The average is a copy: a donated state must not hold one buffer twice.
    return TrainState(*counters, params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def make_update(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    all_reduce_algorithm: str = "psum",
    micro_batches: int = 1,
    ema_longest: float = 0.999,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The jitted `update(state, batch) -> (state, metrics)`; `state` is donated, `batch` split over the mesh."""

    def sums_and_gradients(params, batch, keys) -> tuple[Sums, PyTree[Array]]:
        def scalar(params):
            sums = loss(params, batch, keys)
            return sums.loss, sums

        gradients, sums = jax.grad(scalar, has_aux=True)(params)
        return sums, gradients

    def on_one_device(params, step, batch):
        rows = jax.tree.leaves(batch)[0].shape[0]
        index = jax.lax.axis_index(DATA_AXIS) * rows + jnp.arange(rows)
        step_key = jax.random.fold_in(jax.random.key(seed), step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, index)
        if micro_batches == 1:
            totals = sums_and_gradients(params, batch, keys)
        else:
            parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), (batch, keys))
            zeros = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype),
                jax.eval_shape(sums_and_gradients, params, *jax.tree.map(lambda x: x[0], parts)),
            )
            totals, _ = jax.lax.scan(
                lambda total, part: (jax.tree.map(jnp.add, total, sums_and_gradients(params, *part)), None),
                zeros,
                parts,
            )
        return all_reduce(totals, DATA_AXIS, all_reduce_algorithm)

    everywhere, split = PartitionSpec(), PartitionSpec(DATA_AXIS)
    over_devices = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(everywhere, everywhere, split), out_specs=everywhere, check_vma=False
    )

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        sums, gradients = over_devices(state.params, state.step, batch)
        gradients, mean_loss, means = jax.tree.map(lambda s: s / sums.weight, (gradients, sums.loss, sums.metrics))
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(mean_loss) & jnp.isfinite(norm)

        steps, moments = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, steps)
        ema = update_ema(state.ema, params, ema_decay(state.updates, ema_longest))
        kept = (state.params, state.ema, state.optimizer)
        changed = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, ema, moments), kept)
        counters = (state.step + 1, state.updates + finite, (state.skipped_in_a_row + 1) * ~finite)
        state = TrainState(*(c.astype(jnp.int32) for c in counters), *changed)
        metrics = means | {"loss": mean_loss, "gradient_norm": norm, "skipped_in_a_row": state.skipped_in_a_row}
        return state, metrics

    whole = replicated(mesh)
    return jax.jit(update, donate_argnums=0, out_shardings=(whole, whole))
