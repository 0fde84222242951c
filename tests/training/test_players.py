"""Laws of games: one forward pass gives every player the gradient that a pass of its own would give."""

import chex
import jax
import jax.numpy as jnp
import pytest

from genjax.errors import InputError
from genjax.training.players import LONE, Player, gradients, turns
from tests.training.games import ROWS, Game, batch


@pytest.fixture(scope="module")
def game():
    task = Game()
    parts, keys = task.init(None), jax.random.split(jax.random.key(0), ROWS)

    def losses(trained):
        sums = task.loss(parts._replace(trained=trained), batch(), keys, {"rows": jnp.float32(ROWS)})
        return sums.losses, sums

    return losses, parts.trained


@pytest.mark.slow
def test_gradients_of_one_pass_equal_those_of_a_pass_each(game):
    losses, trained = game
    Game.forward_passes.clear()
    together, _ = gradients(losses, trained, ("critic", "generator"))
    assert len(Game.forward_passes) == 1
    for name, gradient in together.items():
        alone = jax.grad(lambda tree, name=name: losses(tree)[0][name])(trained)[name]
        chex.assert_trees_all_close(gradient, alone, rtol=1e-6, atol=1e-7)


def test_a_scale_multiplies_gradients_and_nothing_else(game):
    losses, trained = game
    plain, sums = gradients(losses, trained, ("critic", "generator"))
    scaled, same = gradients(losses, trained, ("critic", "generator"), 8.0)
    chex.assert_trees_all_equal(jax.tree.map(lambda g: 8 * g, plain), scaled)
    chex.assert_trees_all_equal(sums, same)


def test_a_lone_player_moves_everything(game):
    losses, trained = game
    found, _ = gradients(lambda tree: ({LONE: sum(losses(tree)[0].values())}, ()), trained, (LONE,))
    chex.assert_trees_all_equal_structs(found[LONE], trained)
    chex.assert_trees_all_close(found[LONE], jax.grad(lambda tree: sum(losses(tree)[0].values()))(trained), rtol=1e-6)


def test_turns_come_round_after_the_least_common_multiple():
    players = {"a": Player(every=2), "b": Player(), "c": Player(every=3)}
    assert turns(players) == [("a", "b", "c"), ("b",), ("a", "b"), ("b", "c"), ("a", "b"), ("b",)]
    assert [Player(every=3).moves(steps) for steps in (1, 3, 4, 7)] == [1, 1, 2, 3]


def test_a_player_that_never_moves_is_refused():
    with pytest.raises(InputError, match="not at every 0"):
        Player(every=0)
