"""One training step: a pure function of state and batch, jitted once, with a donated state.

    g_i       = sum over devices and micro-batches of d (share of loss_i) / d trained_i,    for each player i that moves
    trained_i = optimiser_i(clip(g_i)),        ema_i = decay ema_i + (1 - decay) trained_i
    variables = advance(parts, sum of statistics)

Where every device holds the whole state, devices sum explicitly (`shard_map` and an all-reduce). Where the state is
divided, and where a loss couples the rows of a batch, the same step runs on global arrays and XLA divides it: gradients
are reduce-scattered onto the shards of their parameters. The random numbers of a row are keyed by its place in the
global batch, so they depend neither on the number of devices nor on that of micro-batches. A step whose loss or
gradient is not finite changes nothing but the counters.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, PyTree

from genjax.keys import row_keys
from genjax.parallel.collectives import all_reduce
from genjax.parallel.mesh import BATCH_AXES, replicated
from genjax.parallel.rules import divided_over
from genjax.training.ema import ema_decay, update_ema
from genjax.training.loss_scale import next_scale
from genjax.training.players import LONE, Player, gradients, own_part, replaced, turns
from genjax.training.state import TrainState
from genjax.training.task import Batch, Sums, Task

__all__ = ["Told", "make_update"]


class Told(NamedTuple):
    """What a step tells of itself."""

    means: dict[str, tuple[Array, Array]]
    """(sum, weight) by name; a weight of 0 where there is nothing to tell, as of a step that was skipped."""
    skipped_in_a_row: Int[Array, ""]


def make_update(
    task: Task, mesh: jax.sharding.Mesh, *, shardings: TrainState | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Told]]:
    """The jitted `update(state, batch) -> (state, told)`; `state` is donated, `batch` split over the mesh.

    `shardings` says how the state lies on the mesh; whole on every device when None.
    """
    players, train = task.players(), task.train
    by_xla = task.couples_rows or task.mesh.sharded
    optimizers = {name: player.optimizer.build(player.moves(train.steps)) for name, player in players.items()}
    order = turns(players)
    kinds = sorted(set(order), key=order.index)

    def totals_of_rows(movers, parts, key, scale, batch, index, reduce):
        """All sums over some rows of the global batch, whose places in it are `index`."""
        totals = reduce(task.totals(batch))
        keys = row_keys(key, index)

        def of(batch, keys):
            def losses(trained):
                sums = task.loss(parts._replace(trained=trained), batch, keys, totals)
                _check_sums(sums, players)
                return sums.losses, sums

            return gradients(losses, parts.trained, movers, scale)

        if train.accumulate == 1:
            return reduce(of(batch, keys))
        # Neighbours go to different micro-batches, so that a batch that is split over devices stays where it is.
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, train.accumulate, *x.shape[1:]), 1, 0), (batch, keys))
        first = jax.eval_shape(of, *jax.tree.map(lambda x: x[0], split))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
        added, _ = jax.lax.scan(lambda sum, rows: (jax.tree.map(jnp.add, sum, of(*rows)), None), zeros, split)
        return reduce(added)

    def on_one_device(movers, parts, key, scale, batch):
        rows = jax.tree.leaves(batch)[0].shape[0]
        index = jax.lax.axis_index(BATCH_AXES) * rows + jnp.arange(rows)
        reduce = partial(all_reduce, axis=BATCH_AXES, algorithm=task.mesh.all_reduce)
        return totals_of_rows(movers, parts, key, scale, batch, index, reduce)

    def on_all_devices(movers, parts, key, scale, batch):
        rows = jax.tree.leaves(batch)[0].shape[0]
        return totals_of_rows(movers, parts, key, scale, batch, jnp.arange(rows), lambda tree: tree)

    def step(movers, state: TrainState, batch: Batch) -> tuple[TrainState, Told]:
        scale = jnp.float32(1) if state.scale is None else state.scale.value
        key = jax.random.fold_in(jax.random.key(train.seed), state.step)
        if by_xla:
            with divided_over(mesh):
                found, sums = on_all_devices(movers, state.parts, key, scale, batch)
        else:
            everywhere, split = PartitionSpec(), PartitionSpec(BATCH_AXES)
            found, sums = jax.shard_map(
                partial(on_one_device, movers),
                mesh=mesh,
                in_specs=(everywhere, everywhere, everywhere, split),
                out_specs=everywhere,
                check_vma=False,
            )(state.parts, key, scale, batch)
        found = jax.tree.map(lambda gradient: gradient / scale, found)
        if shardings is not None:
            found = {
                name: jax.lax.with_sharding_constraint(found[name], own_part(shardings.parts.trained, name))
                for name in movers
            }
        return _moved(movers, state, found, sums)

    def _moved(movers, state: TrainState, found: dict[str, PyTree[Array]], sums: Sums):
        norms = {name: optax.tree.norm(found[name]) for name in movers}
        loss_is_finite = jnp.all(jnp.stack([jnp.isfinite(sums.losses[name]) for name in movers]))
        norm_is_finite = jnp.all(jnp.stack([jnp.isfinite(norms[name]) for name in movers]))
        finite = loss_is_finite & norm_is_finite

        trained, ema = state.parts.trained, state.ema
        moments, updates = dict(state.optimizer), dict(state.updates)
        for name in movers:
            own = own_part(trained, name)
            steps, moments[name] = optimizers[name].update(found[name], state.optimizer[name], own)
            own = optax.apply_updates(own, steps)
            trained = replaced(trained, name, own)
            if ema is not None:
                decay = ema_decay(state.updates[name], train.ema_decay)
                ema = replaced(ema, name, update_ema(own_part(ema, name), own, decay))
            updates[name] = state.updates[name] + 1
        variables = task.advance(state.parts._replace(trained=trained), sums.statistics)
        _check_variables(variables, state.parts.variables)
        parts = state.parts._replace(trained=trained, variables=variables)

        overflow = jnp.zeros((), bool)
        scale = state.scale
        if scale is not None:  # At a scale of 1 there is nothing left to lower: then it counts as any bad step does.
            overflow = loss_is_finite & ~norm_is_finite & (scale.value > 1)
            scale = next_scale(scale, ~finite)
        new = TrainState(
            step=state.step + 1,
            updates=updates,
            skipped_in_a_row=jnp.where(overflow, state.skipped_in_a_row, (state.skipped_in_a_row + 1) * ~finite),
            scale=scale,
            parts=parts,
            ema=ema,
            optimizer=moments,
        )
        kept = ("updates", "parts", "ema", "optimizer")
        for name in kept:
            chosen = jax.tree.map(lambda a, b: jnp.where(finite, a, b), getattr(new, name), getattr(state, name))
            new = new._replace(**{name: chosen})
        new = new._replace(parts=new.parts._replace(fixed=state.parts.fixed))

        means = dict(sums.metrics)
        for name in players:
            moved = name in movers
            means[_label("loss", name)] = (sums.losses[name], 1.0) if moved else (0.0, 0.0)
            means[_label("gradient_norm", name)] = (norms[name], 1.0) if moved else (0.0, 0.0)
        if scale is not None:
            means["loss_scale"] = (state.scale.value, 1.0)
        means = {n: tuple(jnp.where(finite, jnp.float32(x), 0.0) for x in pair) for n, pair in means.items()}
        return new, Told(means, new.skipped_in_a_row)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Told]:
        if len(kinds) == 1:
            return step(kinds[0], state, batch)
        turn = jnp.asarray([kinds.index(movers) for movers in order])[state.step % len(order)]
        return jax.lax.switch(turn, [partial(step, movers) for movers in kinds], state, batch)

    whole = replicated(mesh)
    return jax.jit(update, donate_argnums=0, out_shardings=(whole if shardings is None else shardings, whole))


def _check_sums(sums: Sums, players: Mapping[str, Player]) -> None:
    """Raise TypeError unless each player has a scalar, and each metric is (sum, weight); while tracing only."""
    if set(sums.losses) != set(players):
        raise TypeError(f"the losses are those of {sorted(sums.losses)}, and the players are {sorted(players)}")
    for name, value in sums.losses.items():
        _check(f"the loss of the player {name!r} is a scalar, a sum over rows", chex.assert_shape, value, ())
    for name, pair in sums.metrics.items():
        said = f"the metric {name!r} is a pair of scalars, (sum, weight)"
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"{said}, and not {pair!r}")
        _check(said, chex.assert_shape, pair, ())


def _check_variables(new: PyTree[Array], old: PyTree[Array]) -> None:
    """Raise TypeError unless `advance` has kept the names, shapes and types of the variables; while tracing only."""
    law = "advance keeps the names, shapes and types of the variables"
    _check(law, chex.assert_trees_all_equal_shapes_and_dtypes, new, old)


def _check(law: str, assertion: Callable[..., None], *arguments) -> None:
    try:
        assertion(*arguments)
    except AssertionError as error:
        raise TypeError(f"{law}: {error}") from None


def _label(what: str, player: str) -> str:
    return what if player == LONE else f"{what}/{player}"
