"""Laws of GANs: who sees what, constraints that hold at every step, samples that are functions of seed and place."""

from dataclasses import dataclass, replace
from itertools import islice

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from configs.gan import VARIANTS
from genjax import config
from genjax.adversarial.constraints import SpectralNorm, WeightClipping
from genjax.adversarial.objectives import Hinge, LeastSquares, Minimax, NonSaturating, Relativistic, Wasserstein
from genjax.adversarial.penalties import R1, R1R2, GradientPenalty, NoPenalty
from genjax.data import Digits, Examples, Text, TwentyFiveGaussians, TwoMoons
from genjax.errors import InputError
from genjax.models.critics import DCGANCritic, MLPCritic
from genjax.models.generators import DCGANGenerator, MLPGenerator
from genjax.parallel.mesh import Mesh, replicated, shard_batch
from genjax.runs.directory import SHIPPED
from genjax.tasks.gan import GAN, Projected
from genjax.training.optimizer import SGD, Adam
from genjax.training.state import initial_state
from genjax.training.task import Train
from genjax.training.update import make_update

# A large eps: Adam makes whole steps of rounding errors where gradients are zero, as those of biases before norms are.
ADAM = Adam(learning_rate=1e-2, warmup_steps=0, b1=0.5, eps=1e-3, clip_norm=None)
TOY = GAN(
    generator=MLPGenerator(width=8, depth=1),
    critic=MLPCritic(width=8, depth=2),
    latent=3,
    objective=Wasserstein(),
    penalty=NoPenalty(),
    data=TwentyFiveGaussians(points=64, test_points=64),
    optimizer=ADAM,
    critic_optimizer=ADAM,
    train=Train(steps=20, batch_size=8),
)
PICTURES = replace(
    TOY, generator=DCGANGenerator(width=8), critic=DCGANCritic(width=8), data=Digits(), objective=NonSaturating()
)


def rows(task, number):
    source, rng = task.data.source("train"), np.random.default_rng(0)
    prepared = [task.prepare(source[i], rng) for i in range(number)]
    return {name: np.stack([row[name] for row in prepared]) for name in prepared[0]}


def keys(number):
    return jax.random.split(jax.random.key(3), number)


def trained(task, steps=20, devices=1):
    task = replace(task, mesh=Mesh(data=devices))
    mesh = task.mesh.build()
    update = make_update(task, mesh)
    state = jax.jit(lambda key: initial_state(task, key), out_shardings=replicated(mesh))(jax.random.key(0))
    batch = rows(task, 8)
    for _ in range(steps):
        state, told = update(state, shard_batch(batch, mesh))
    return jax.device_get(state), jax.device_get(told)


OBJECTIVES = (Minimax(), NonSaturating(), Hinge(), LeastSquares(), Wasserstein(), Relativistic())


@pytest.mark.parametrize(
    "penalty", [pytest.param(R1(), marks=pytest.mark.slow), GradientPenalty(), NoPenalty(), R1R2()]
)
def test_any_objective_goes_with_any_penalty(penalty):
    """Finite losses, and the sum of the shares of rows is the loss of the batch."""
    tasks = {type(each).__name__: replace(TOY, objective=each, penalty=penalty) for each in OBJECTIVES}
    parts, batch = TOY.init(jax.random.key(0)), rows(TOY, 4)

    @jax.jit  # of all objectives at once: they share the players and the penalty
    def losses(x, keys):
        return {name: task.loss(parts, {"x": x}, keys, TOY.totals(batch)).losses for name, task in tasks.items()}

    whole = losses(batch["x"], keys(4))
    shares = [losses(batch["x"][i : i + 2], keys(4)[i : i + 2]) for i in (0, 2)]
    for objective in tasks:
        for player in ("critic", "generator"):
            assert np.isfinite(whole[objective][player]), (objective, player)
            summed = shares[0][objective][player] + shares[1][objective][player]
            np.testing.assert_allclose(whole[objective][player], summed, rtol=1e-5, err_msg=f"{objective}, {player}")


def test_the_penalty_moves_the_critic_alone():
    task, batch = replace(TOY, penalty=GradientPenalty()), rows(TOY, 4)
    parts = task.init(jax.random.key(0))

    def critic_loss(generator, task):
        trained = parts.trained | {"generator": generator}
        return task.loss(parts._replace(trained=trained), batch, keys(4), {"rows": 4.0}).losses["critic"]

    of_generator = jax.jit(jax.grad(critic_loss), static_argnums=1)
    with_penalty, without = (of_generator(parts.trained["generator"], t) for t in (task, TOY))
    chex.assert_trees_all_close(with_penalty, without, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_clipped_critic_stays_within_its_limit_at_every_step():
    state, _ = trained(replace(TOY, constraint=WeightClipping(0.05)))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(state.parts.trained["critic"]))
    assert largest == pytest.approx(0.05, rel=1e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(state.parts.trained["generator"])) > 0.05


@pytest.mark.slow
def test_a_spectrally_normalised_critic_is_one_lipschitz():
    task = replace(TOY, constraint=SpectralNorm())
    state, _ = trained(task, steps=40)
    x = jax.random.normal(jax.random.key(1), (256, 2))
    slopes = jax.jit(jax.vmap(jax.grad(lambda point: task.score(state.parts, point[None]).sum())))(x)
    assert np.linalg.norm(slopes, axis=1).max() <= 1.01
    assert jax.tree.leaves(state.parts.variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [replace(TOY, constraint=SpectralNorm(), generator_every=3), PICTURES], ids=["toy", "digits"]
)
def test_twenty_steps_of_the_game_agree_on_any_number_of_devices(task):
    """Both players, their averages and moments, and the critic's singular vectors."""
    steps = 20 if task is not PICTURES else 5
    one, _ = trained(task, steps)
    for devices in (2, 4):
        other, _ = trained(task, steps, devices)
        chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch():
    params = PICTURES.init(jax.random.key(0)).trained["generator"]
    z = PICTURES.latents(0, 7)
    together = PICTURES.sample(params, z)
    np.testing.assert_allclose(together, PICTURES.sample(params, z, batch_size=3), atol=1e-6)
    np.testing.assert_array_equal(PICTURES.latents(0, 3), z[:3])
    assert together.shape == (7, 8, 8, 1)


def test_truncation_bounds_latents():
    assert np.abs(TOY.latents(0, 500, 0.5)).max() <= 0.5
    assert np.abs(TOY.latents(0, 500)).max() > 2


def test_classes_are_drawn_on_demand():
    task = replace(
        PICTURES, generator=DCGANGenerator(width=8, num_classes=10), critic=DCGANCritic(width=8, num_classes=10)
    )
    task.check()
    assert rows(task, 4)["label"].dtype == np.int32
    parts = task.init(jax.random.key(0))
    z = np.repeat(task.latents(0, 1), 2, axis=0)
    zero, one = task.sample(parts.trained["generator"], z, np.array([0, 1]))
    assert np.abs(zero - one).max() > 1e-4
    sums = jax.jit(task.loss)(parts, rows(task, 4), keys(4), {"rows": jnp.float32(4)})
    assert np.isfinite(sums.losses["critic"])


def test_validation_is_fixed_and_tells_held_out_rows_from_training_ones():
    parts = PICTURES.init(jax.random.key(0))
    first, second = PICTURES.validate(parts), PICTURES.validate(parts)
    assert first == second
    assert set(first) == {f"validation_score_of_{name}" for name in ("data", "held_out", "samples")}


@dataclass(frozen=True)
class Torn(Digits):
    """Digits of which every third cannot be read."""

    def source(self, split):
        whole = super().source(split)

        def read(item):
            if item % 3 == 0:
                raise InputError(f"digit {item} is torn.")
            return whole.read(item)

        return Examples(whole.items, read, on_bad="skip")


def test_what_cannot_be_read_is_passed_over_where_a_run_is_looked_at():
    parts = PICTURES.init(jax.random.key(0))
    task = replace(PICTURES, data=Torn())
    images = [row["x"] for row in islice(task.fixed_rows("train"), 40)]
    there = [example["image"] for example in Torn().source("train") if example is not None]
    np.testing.assert_array_equal(images, there[:40])
    assert all(np.isfinite(value) for value in task.validate(parts).values())


def test_a_projected_optimiser_keeps_the_schedule_of_what_it_projects():
    inner = SGD(learning_rate=0.5, warmup_steps=4)
    assert Projected(inner, WeightClipping(1.0)).schedule(9)(0) == inner.schedule(9)(0)


MISFITS = {
    "latent is the number of coordinates": {"latent": 0},
    "generator_every is a number of the critic's steps, at least 1, not 0": {"generator_every": 0},
    "both players have the same classes": {"critic": DCGANCritic(width=8, num_classes=10)},
    "the data has 10 classes": {
        "generator": DCGANGenerator(width=8, num_classes=3), "critic": DCGANCritic(width=8, num_classes=3)
    },
    "the generator draws arrays of shape": {"generator": DCGANGenerator(image_shape=(16, 16, 1), width=8)},
    "those of the data have .2,.": {"data": TwoMoons()},
    "DCGANCritic scores images .*, not rows of .2,.": {"generator": MLPGenerator(), "data": TwoMoons()},
}  # fmt: skip


@pytest.mark.parametrize("sentence", MISFITS)
def test_parts_that_do_not_fit_are_refused(sentence):
    with pytest.raises(InputError, match=sentence):
        replace(PICTURES, **MISFITS[sentence]).check()


def test_data_of_another_kind_is_refused_by_name_before_anything_is_written(tmp_path):
    for variant in ("toy", "digits"):
        words = ["--config", f"configs/gan.py:{variant}", "--data", "Text", "--workdir", str(tmp_path / "run")]
        with pytest.raises(InputError, match=r"^--data takes one of Couples, Digits, .*, TwoMoons, .*, not 'Text'$"):
            train.main(words)
    with pytest.raises(InputError, match="data takes a LabelledImages or a Densities, not a Text"):
        config.override(TOY, {"data": Text()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("player", ["optimizer", "critic_optimizer"])
def test_an_impossible_optimiser_is_named_by_the_player_that_has_it(player):
    told = f"^{player}.learning_rate of Adam is positive, not -1.0$"
    with pytest.raises(InputError, match=told):
        config.parse_with_config(["--config", "configs/gan.py", f"--{player}.learning_rate=-1"], train.Options())
    recorded = config.to_dict(TOY)
    recorded[player]["learning_rate"] = -1.0
    with pytest.raises(InputError, match=told):
        config.from_dict(recorded)


def test_the_run_that_ships_is_one_of_the_config():
    shipped = config.read(SHIPPED / "gan-digits" / "config.json")
    assert shipped == VARIANTS["digits"]()
