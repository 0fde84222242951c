"""Laws of tokenisers: what each player loses, an adversarial weight that balances gradients, equal on any mesh."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from genjax.adversarial.lecam import LeCam
from genjax.adversarial.objectives import NonSaturating
from genjax.adversarial.penalties import R1
from genjax.data import Digits
from genjax.errors import InputError
from genjax.metrics.distortion import psnr
from genjax.models.autoencoder import Autoencoder
from genjax.models.noisy_classifier import NoisyClassifier
from genjax.models.patch_critic import PatchCritic
from genjax.parallel.mesh import Mesh, replicated, shard_batch
from genjax.parallel.rules import unbox
from genjax.quantisation.finite_scalar import FSQ
from genjax.quantisation.lookup_free import LFQ
from genjax.quantisation.posterior import Posterior
from genjax.quantisation.residual import Residual
from genjax.quantisation.usage import usage
from genjax.quantisation.vector import VQ, AverageVQ
from genjax.runs.parts import Parts
from genjax.runs.source import Source
from genjax.tasks.perceptual import ClassifierFeatures
from genjax.tasks.tokeniser import Tokeniser
from genjax.training.optimizer import Adam
from genjax.training.state import initial_state
from genjax.training.task import Train
from genjax.training.update import make_update

ADAM = Adam(learning_rate=1e-2, warmup_steps=0, b1=0.5, eps=1e-3, clip_norm=None)
MODEL = Autoencoder(image_channels=1, widths=(4, 4), blocks=1, z_channels=4, code_channels=3, groups=2)
PLAIN = Tokeniser(
    model=MODEL,
    bottleneck=AverageVQ(size=6, width=3, decay=0.5),
    data=Digits(),
    optimizer=ADAM,
    critic_optimizer=ADAM,
    train=Train(steps=20, batch_size=8, ema_decay=None),
)
GAME = replace(PLAIN, critic=PatchCritic(width=4, layers=1, groups=2), lecam=LeCam(weight=0.1, decay=0.5))
BOTTLENECKS = {
    "vq": VQ(size=6, width=3),
    "average": AverageVQ(size=6, width=3),
    "fsq": FSQ((3, 4, 5)),
    "lfq": LFQ(bits=3, temperature=1.0),  # softer than usual: a step of 1e-2 would amplify rounding
    "residual": Residual(VQ(size=6, width=3), depth=2),
    "posterior": Posterior(0.1),
}
KEY = jax.random.key(0)


def with_bottleneck(name, task=PLAIN):
    bottleneck = BOTTLENECKS[name]
    return replace(task, bottleneck=bottleneck, model=task.model.clone(moments=isinstance(bottleneck, Posterior)))


def rows(number=8):
    source = Digits().source("train")
    return {"image": np.stack([source[i]["image"] for i in range(number)])}


def keys(number=8):
    return jax.random.split(jax.random.key(3), number)


def parts_of(task):
    """Fresh parts, the adversarial term at a weight of its own where there is one."""
    parts = unbox(jax.jit(task.init)(KEY))
    more = {"adaptive_weight": jnp.float32(0.7)} if "adaptive_weight" in parts.variables else {}
    return parts._replace(variables={**parts.variables, **more})


def trained(task, steps, devices=1):
    task = replace(task, mesh=Mesh(data=devices))
    mesh = task.mesh.build()
    update = make_update(task, mesh)
    state = jax.jit(lambda key: initial_state(task, key), out_shardings=replicated(mesh))(KEY)
    for _ in range(steps):
        state, told = update(state, shard_batch(rows(), mesh))
    return jax.device_get(state), jax.device_get(told)


# ---------------------------------------------------------------------------------------------- what is lost


@pytest.mark.parametrize(
    "name", [name if name == "posterior" else pytest.param(name, marks=pytest.mark.slow) for name in BOTTLENECKS]
)
def test_without_a_critic_the_loss_is_the_error_and_what_the_bottleneck_costs(name):
    task, batch = with_bottleneck(name), rows()
    parts = parts_of(task)
    task.check()

    @jax.jit
    def both(parts, batch, keys):
        sums = task.loss(parts, batch, keys, {"rows": 8.0})
        code = task.code(parts, task.encode(parts, batch["image"]), jax.vmap(jax.random.split)(keys)[:, 0])
        return sums, code, task.decode(parts, code.z_q)

    sums, code, drawn = both(parts, batch, keys())
    costs = sum(np.mean(loss) for loss in code.losses.values())
    expected = np.abs(batch["image"] - drawn).mean() + costs
    np.testing.assert_allclose(sums.losses["autoencoder"], expected, rtol=1e-5)


def test_a_nat_of_divergence_costs_its_weight_for_all_numbers_of_a_picture():
    """Latent diffusion sums |x - y| over a picture, and its weight times KL over its code: ours times 64 numbers."""
    task = with_bottleneck("posterior")
    parts, image = parts_of(task), rows()["image"]
    said = jax.jit(task.encode)(parts, image)
    costs = task.code(parts, said, keys()).losses["divergence"].mean(axis=(1, 2))
    divergence = task.bottleneck.divergence(said).sum(axis=(1, 2))
    np.testing.assert_allclose(64 * costs, 0.1 * divergence, rtol=1e-5)


def test_squared_errors_are_lowered_where_that_is_asked():
    image, drawn = jnp.zeros((2, 2, 2, 1)), jnp.full((2, 2, 2, 1), 3.0)
    for kind, error in (("l1", 3), ("l2", 9)):
        terms = replace(PLAIN, reconstruction=kind).unlikeness(Parts({}), image, drawn)
        np.testing.assert_array_equal(terms["reconstruction"], [error, error])


@pytest.mark.slow
def test_both_players_lose_what_the_objective_says_and_the_critic_pays_its_penalties():
    task = replace(GAME, objective=NonSaturating(), penalty=R1(weight=2.0), adversarial_weight=0.3)
    parts, batch = parts_of(task), rows()
    parts.variables["anchors"] = {"real": jnp.float32(0.2), "fake": jnp.float32(-0.1)}

    @jax.jit
    def by_hand(parts, image):
        code = task.code(parts, task.encode(parts, image))
        drawn = task.decode(parts, code.z_q)

        def score(x):
            return task.score(parts.trained["critic"], x)

        real, fake = score(image), score(drawn)
        slopes = jax.grad(lambda x: score(x).mean(axis=(1, 2)).sum())(image)
        generator = jnp.abs(image - drawn).mean() + code.losses["commitment"].mean()
        generator += 0.3 * 0.7 * jax.nn.softplus(-fake).mean()
        critic = (jax.nn.softplus(-real) + jax.nn.softplus(fake)).mean()
        critic += 2.0 * jnp.square(slopes).sum(axis=(1, 2, 3)).mean()
        critic += 0.1 * (jax.nn.relu(real + 0.1) ** 2 + jax.nn.relu(0.2 - fake) ** 2).mean()
        return {"autoencoder": generator, "critic": critic}

    sums = jax.jit(task.loss)(parts, batch, keys(), {"rows": 8.0})
    chex.assert_trees_all_close(sums.losses, by_hand(parts, batch["image"]), rtol=1e-5)


# ---------------------------------------------------------------------------------------------- the adversarial weight


@pytest.mark.slow
@pytest.mark.parametrize("perceptual", [None, ClassifierFeatures("", NoisyClassifier(widths=(4, 8), groups=2), 2.0)])
def test_after_a_step_the_weight_is_the_ratio_of_the_whole_gradients_at_the_last_kernel(perceptual):
    """Equation 7 of VQGAN, from the gradients by all parameters of each term alone; and anchors are mean scores."""
    task, batch = replace(GAME, perceptual=perceptual), rows()
    parts, image = parts_of(task), batch["image"]

    def drawn(own):
        there = parts._replace(trained={**parts.trained, "autoencoder": own})
        return task.decode(there, task.code(there, task.encode(there, image)).z_q)

    def reconstruction(own):
        more = 0.0
        if perceptual is not None:
            more = 2.0 * perceptual.distance(parts.fixed["perceptual"], image, drawn(own)).mean()
        return jnp.abs(image - drawn(own)).mean() + more

    def adversarial(own):
        return -task.score(parts.trained["critic"], drawn(own)).mean()

    own = parts.trained["autoencoder"]
    slopes = [jax.jit(jax.grad(term))(own)["network"]["conv_out"]["kernel"] for term in (reconstruction, adversarial)]
    norms = [np.linalg.norm(slope) for slope in slopes]
    sums = jax.jit(task.loss)(parts, batch, keys(), {"rows": 8.0})
    after = task.advance(parts, sums.statistics)
    np.testing.assert_allclose(after["adaptive_weight"], norms[0] / (norms[1] + 1e-4), rtol=1e-4)
    bounded = replace(task, adaptive_most=1e-3).advance(parts, sums.statistics)
    np.testing.assert_allclose(bounded["adaptive_weight"], 1e-3)
    assert int(after["step"]) == 1
    scores = {"real": task.score(parts.trained["critic"], image).mean(), "fake": -adversarial(own)}
    chex.assert_trees_all_close(after["anchors"], {name: score / 2 for name, score in scores.items()}, rtol=1e-4)


def test_each_player_has_its_own_optimiser():
    other = replace(ADAM, learning_rate=0.5)
    players = replace(GAME, critic_optimizer=other).players()
    assert (players["autoencoder"].optimizer, players["critic"].optimizer) == (ADAM, other)
    assert set(PLAIN.players()) == {"autoencoder"}


@pytest.mark.slow
def test_in_half_precision_networks_compute_in_it_and_losses_do_not():
    half = replace(GAME, train=replace(GAME.train, precision="bf16"))
    parts, batch = parts_of(GAME), rows()
    said = jax.eval_shape(half.encode, parts, batch["image"])
    assert said.dtype == jnp.float32
    seen = set()

    def told(call, arguments, options, context):
        if isinstance(context.module, nn.Conv):
            seen.add(jnp.asarray(arguments[0]).dtype.name)
        return call(*arguments, **options)

    with nn.intercept_methods(told):
        sums = jax.eval_shape(half.loss, parts, batch, keys(), {"rows": 8.0})
    assert seen == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(sums)} == {"float32"}


def test_the_term_comes_in_over_its_ramp_and_not_before_its_start():
    task = replace(GAME, adversarial_weight=0.8, adversarial_start=10, adversarial_ramp=4)
    variables = {"adaptive_weight": jnp.float32(0.5)}
    steps = [0, 10, 11, 14, 100]
    scales = [float(task.adversarial_scale(variables | {"step": jnp.int32(step)})) for step in steps]
    np.testing.assert_allclose(scales, [0, 0, 0.1, 0.4, 0.4], rtol=1e-6)
    sudden = replace(task, adversarial_ramp=0, adaptive=False)
    assert [float(sudden.adversarial_scale({"step": jnp.int32(step)})) for step in (9, 10)] == [0, np.float32(0.8)]


@pytest.mark.slow
def test_until_its_start_the_critic_learns_and_the_autoencoder_does_not_know_of_it():
    game, alone = (trained(task, 3)[0].parts for task in (replace(GAME, adversarial_start=3), PLAIN))
    chex.assert_trees_all_close(game.trained["autoencoder"], alone.trained["autoencoder"], atol=1e-6)
    fresh = unbox(GAME.init(KEY)).trained["critic"]
    assert all(
        np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (fresh, game.trained["critic"])), strict=True)
    )


# ---------------------------------------------------------------------------------------------- any mesh


@pytest.mark.slow
@pytest.mark.parametrize("name", ["average", "lfq", "residual"])
def test_parts_are_the_same_on_any_number_of_devices_and_micro_batches(name):
    task = with_bottleneck(name, GAME)
    expected, _ = trained(task, 5)
    for devices, accumulate in ((2, 1), (4, 1), (1, 4)):
        found, _ = trained(replace(task, train=replace(task.train, accumulate=accumulate)), 5, devices)
        chex.assert_trees_all_close(found.parts, expected.parts, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_norms_over_the_batch_see_all_of_it_on_any_number_of_devices():
    task = replace(GAME, critic=PatchCritic(width=4, layers=1, norm="batch"))
    assert task.couples_rows and not GAME.couples_rows
    (expected, _), (found, _) = trained(task, 3), trained(task, 3, devices=2)
    chex.assert_trees_all_close(found.parts, expected.parts, atol=2e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- codes and pictures


@pytest.mark.parametrize("name", ["average", pytest.param("residual", marks=pytest.mark.slow)])
def test_ids_alone_say_what_is_drawn(name):
    task = with_bottleneck(name)
    parts = parts_of(task)
    images = np.concatenate([rows(40)["image"]] * 2)  # more than a block
    vectors, ids = task.vectors_of(parts, images), task.ids_of(parts, images)
    assert vectors.shape == (80, *task.code_shape) == (80, 4, 4, 3)
    assert ids.shape == (80, 4, 4) + ((2,) if name == "residual" else ())
    drawn = task.drawn_from(parts, vectors)
    np.testing.assert_allclose(task.drawn_from_ids(parts, ids), drawn, atol=1e-6)
    counts = task.counts_of(ids)
    assert counts.shape == (task.levels, 6) and (counts.sum(axis=1) == 80 * 16).all()
    assert (counts[0] > 0).sum() == len(np.unique(ids.reshape(-1, task.levels)[:, 0]))
    loud = parts.trained["autoencoder"]["network"]["conv_out"]
    loud["kernel"] = 100 * loud["kernel"]
    for pictures in (task.drawn_from(parts, vectors[:2]), task.drawn_from_ids(parts, ids[:2])):
        assert np.abs(pictures).max() == 1


@pytest.mark.slow
def test_validation_tells_the_figures_of_held_out_pictures():
    task = with_bottleneck("fsq")
    parts = parts_of(task)
    images = task.pictures("test", 512)
    found = usage(task.counts_of(task.ids_of(parts, images))[0])
    ratio = psnr(images, task.drawn_from(parts, task.vectors_of(parts, images))).mean()
    expected = {"validation_psnr": ratio, "validation_usage": found.usage, "validation_perplexity": found.perplexity}
    assert task.validate(parts) == pytest.approx(expected)
    assert task.bits_per_position == np.log2(60)
    assert set(with_bottleneck("posterior").validate(parts_of(with_bottleneck("posterior")))) == {"validation_psnr"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": MODEL.clone(image_channels=3)}, "model.image_channels is 3, and the images of the data have 1"),
        ({"model": MODEL.clone(widths=(4,) * 5)}, "8x8 are not divided by the stride of the model, 16"),
        ({"model": MODEL.clone(moments=True)}, "AverageVQ takes a code"),
        ({"bottleneck": Posterior()}, "Posterior takes moments"),
        (
            {"bottleneck": LFQ(bits=4)},
            "codes of LFQ have 4 coordinates, and those of the model 3: take model.code_channels of 4",
        ),
        ({"lecam": LeCam()}, "there is no critic"),
        ({"penalty": R1()}, "there is no critic"),
        ({"adversarial_start": -1}, "adversarial_start is 0 or more, not -1"),
        ({"adversarial_ramp": -1}, "adversarial_ramp is 0 or more, not -1"),
        ({"adversarial_weight": -1.0}, "adversarial_weight is 0 or more, not -1"),
        ({"adaptive_most": -1.0}, "adaptive_most is 0 or more, not -1"),
        ({"critic": PatchCritic(layers=1, norm="batch"), "penalty": R1()}, "critic.norm batch mixes rows"),
        ({"critic": PatchCritic(layers=1), "train": Train(precision="fp16")}, "take bf16"),
        ({"train": Train(start=Source("runs/x"))}, "not the codebook of AverageVQ"),
        ({"critic": PatchCritic(layers=2)}, "12 pixels a side or more, not of 8x8"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        replace(PLAIN, **change).check()
