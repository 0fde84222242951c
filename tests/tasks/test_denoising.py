"""Laws of the denoising system: what its loss is, and that a sample is a function of seed, place and wish."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from genjax.data import Images, Npz
from genjax.diffusion.solvers import DPMpp2M, Heun
from genjax.errors import InputError
from genjax.models.byte_encoder import ByteEncoder
from genjax.models.mmdit import MMDiT
from genjax.parallel.mesh import Mesh, replicated, shard_batch
from genjax.parallel.rules import state_shardings
from genjax.tasks import sampling
from genjax.tasks.conditions import Nothing, Text
from genjax.tasks.denoising import STRATA, Denoising, Sampler
from genjax.tasks.spaces import Latents
from genjax.training.optimizer import AdamW
from genjax.training.state import initial_state
from genjax.training.task import Train
from genjax.training.update import make_update


def rows(task, number):
    source, rng = task.data.source("train"), np.random.default_rng(0)
    prepared = [task.prepare(source[i], rng) for i in range(number)]
    return {name: np.stack([row[name] for row in prepared]) for name in prepared[0]}


def total(batch):
    return {"rows": float(len(batch["image"]))}


def keys(number):
    return jax.random.split(jax.random.key(3), number)


@pytest.mark.slow
def test_a_fresh_network_has_the_loss_of_predicting_nothing(task):
    """It predicts 0, so its loss is E (eps - x_0)^2 = 1 + E x_0^2."""
    batch = rows(task, 256)
    sums = jax.jit(lambda key: task.loss(task.init(key), batch, keys(256), total(batch)))(jax.random.key(0))
    assert float(sums.losses["loss"]) == pytest.approx(1 + np.square(batch["image"]).mean(), rel=0.05)


@pytest.fixture(scope="module")
def loss_at(task):
    """The loss as a function of the rate at which captions are dropped, and then of what `loss` takes."""

    def at(rate, *given):
        return replace(task, condition=replace(task.condition, dropout=rate)).loss(*given)

    return jax.jit(at, static_argnums=0)


@pytest.mark.slow
def test_the_loss_of_a_batch_is_the_sum_of_the_shares_of_its_rows(task, parts, loss_at):
    batch, loss = rows(task, 4), partial(loss_at, task.condition.dropout)
    whole = loss(parts, batch, keys(4), task.totals(batch))
    alone = [
        loss(parts, {k: v[i : i + 1] for k, v in batch.items()}, keys(4)[i : i + 1], task.totals(batch))
        for i in range(4)
    ]
    assert float(whole.losses["loss"]) == pytest.approx(sum(float(one.losses["loss"]) for one in alone), rel=1e-5)
    assert float(task.totals(batch)["rows"]) == 4


@pytest.mark.slow
def test_a_dropped_caption_is_the_empty_one(task, parts, loss_at):
    """With dropout 1 the captions do not matter; with dropout 0 they do."""
    batch = rows(task, 4)
    other = batch | {"tokens": batch["tokens"][::-1]}
    for rate, equal in ((1.0, True), (0.0, False)):
        first, second = (
            float(loss_at(rate, parts, each, keys(4), task.totals(batch)).losses["loss"]) for each in (batch, other)
        )
        assert (first == second) is equal


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch(task, params):
    prompts = [f"a handwritten {name}" for name in task.data.class_names[:7]]
    prompts = [prompts[i % 7] for i in range(8)]
    together = task.sample(params, prompts, seed=5)
    in_parts = task.sample(params, prompts, seed=5, batch_size=3)
    one_by_one = task.sample(params, prompts, seed=5, batch_size=1)
    assert together.shape == (8, 8, 8, 1)
    np.testing.assert_allclose(together, in_parts, atol=1e-5)
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    assert np.abs(together[0] - together[7]).max() > 0.1  # the same prompt, other noise


@pytest.mark.slow
def test_a_sample_does_not_depend_on_how_its_network_is_divided(task, params):
    """Each half of the devices draws half of eight, or, where they are seven, all of them."""
    mesh = Mesh(data=1, fsdp=2, tensor=2).build()
    shardings = state_shardings(mesh, jax.eval_shape(task.init, jax.random.key(0)).trained, whole_below=1)
    divided = jax.device_put(params, shardings)
    prompts = [f"a handwritten {name}" for name in task.data.class_names[:8]]
    alone = task.sample(params, prompts, seed=5)
    for number in (8, 7):
        drawn = task.sample(divided, prompts[:number], seed=5)
        np.testing.assert_allclose(drawn, alone[:number], rtol=0, atol=1e-5)


def test_a_sampler_compiles_once(task, params):
    """Whatever the seed, the words, the guidance and the number of steps."""
    before = sampling._draw._cache_size()
    for seed, guidance, steps, words in ((0, 2.0, 3, "one"), (1, 3.0, 3, "seven"), (2, 2.0, 5, "six")):
        sampler = replace(task.sampler, solver=DPMpp2M(), guidance=guidance, steps=steps)
        task.sample(params, [words] * 5, seed=seed, sampler=sampler, batch_size=5)
    assert sampling._draw._cache_size() == before + 1


def test_guidance_one_is_the_conditional_prediction_at_half_the_cost(task, params):
    free, nearly = (replace(task.sampler, guidance=w) for w in (1.0, 1.0 + 1e-6))
    a, b = (task.sample(params, ["seven", "one", "two"], seed=0, sampler=s) for s in (free, nearly))
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert (free.evaluations, nearly.evaluations) == (3, 6)
    assert replace(nearly, solver=Heun()).evaluations == 12


def test_a_trajectory_goes_from_noise_to_the_samples(task, params):
    states = task.sample(params, ["seven"] * 3, seed=0, trajectory=True)
    assert states.shape == (4, 3, 8, 8, 1)
    np.testing.assert_allclose(states[-1], task.sample(params, ["seven"] * 3, seed=0), atol=1e-6)


def test_the_network_computes_in_the_policy_and_returns_float32(task, params):
    def run(task):
        condition = task.encode(params, task.condition.asked(["one", "two"], task.data))
        return condition, task.predict(params, jnp.ones((2, 8, 8, 1)), jnp.array([0.2, 0.8]), condition)

    (context, pooled), output = jax.jit(run, static_argnums=0)(replace(task, train=Train(precision="bf16")))
    _, exact = jax.jit(run, static_argnums=0)(task)
    assert context.dtype == pooled.dtype == jnp.bfloat16
    assert output.dtype == jnp.float32
    assert np.abs(output - exact).max() < 0.05 * np.abs(exact).max()
    assert np.abs(output - exact).max() > 0


def test_the_validation_loss_is_fixed_and_named_by_time(task, parts):
    first, second = task.validate(parts), task.validate(parts)
    assert first == second
    strata = [first[f"validation_loss/t={t:.4f}"] for t in STRATA]
    assert len(strata) == 8
    assert first["validation_loss"] == pytest.approx(np.mean(strata), rel=1e-6)


@pytest.mark.slow
def test_samples_are_not_clipped_where_they_are_latents(task, params):
    """Pixels lie in [-1, 1], latents do not; clipping is a matter of showing pictures."""
    large = jax.tree.map(lambda leaf: 3 * leaf, params)
    latents = replace(task, space=Latents()).sample(large, ["seven"] * 3, seed=0)
    assert np.abs(latents).max() > 1
    np.testing.assert_allclose(task.sample(large, ["seven"] * 3, seed=0), np.clip(latents, -1, 1), atol=1e-5)


def test_captions_name_the_classes_in_order(task):
    wishes = task.condition.wishes(task.data)
    assert [captions[0].split()[-1] for captions in wishes] == list(task.data.class_names)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("algorithm", ["psum", "ring"])
def test_ten_steps_agree_on_any_number_of_devices(task, devices, algorithm):
    """To 1e-6, as asked; and the ring equals psum."""
    batches = [rows(task, 8) for _ in range(2)]
    task = replace(task, optimizer=AdamW(learning_rate=1e-3, warmup_steps=100), train=Train(steps=1000, batch_size=8))

    def trained(devices, algorithm):
        played = replace(task, mesh=Mesh(data=devices, all_reduce=algorithm))
        mesh = played.mesh.build()
        update = make_update(played, mesh)
        state = jax.jit(lambda key: initial_state(played, key), out_shardings=replicated(mesh))(jax.random.key(0))
        for i in range(10):
            state, _ = update(state, shard_batch(batches[i % 2], mesh))
        assert update._cache_size() == 1
        return jax.device_get(state.parts.trained)

    if "one" not in _TRAINED:
        _TRAINED["one"] = trained(1, "psum")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), _TRAINED["one"], trained(devices, algorithm)
    )


_TRAINED = {}


MISFITS = {
    "model.channels is 3": {"model": MMDiT(channels=3)},
    "guidance is 2, and a condition of Nothing is never dropped": {"condition": Nothing()},
    "time_shift": {"time_shift": 0.0},
    "an image side of 8 is not a multiple of patch_size = 3": {"model": MMDiT(channels=1, patch_size=3)},
    "does not fit into pos_embed_max_size = 2": {"model": MMDiT(channels=1, pos_embed_max_size=2)},
    "a multiple of 4 channels, not 3": {"model": MMDiT(channels=1, num_heads=1, head_dim=3)},
    "depth of MMDiT is at least 1": {"model": MMDiT(channels=1, depth=0)},
    "dual_attention_layers of MMDiT is at least 0": {"model": MMDiT(channels=1, dual_attention_layers=-1)},
    "pos_embed_base_size of MMDiT is at least 1": {"model": MMDiT(channels=1, pos_embed_base_size=0)},
    "takes at most 3": {"condition": Text(ByteEncoder(max_length=3))},
    "width 64 cannot have 3 heads": {"condition": Text(ByteEncoder(num_heads=3))},
    "path is not set": {"data": Npz()},
}


@pytest.mark.parametrize("sentence", MISFITS)
def test_parts_that_do_not_fit_are_refused(task, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(task, **MISFITS[sentence]).check()


@pytest.mark.parametrize("wrong", [{"steps": 0}])
def test_impossible_samplers_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampler(**wrong)


def test_a_prompt_that_is_too_long_is_refused(task, params):
    with pytest.raises(InputError, match="has 40 bytes, and this text encoder takes at most 24"):
        task.sample(params, ["x" * 40], seed=0)


def test_the_default_system_is_the_published_one():
    assert Denoising().model.num_heads * Denoising().model.head_dim == 1536


def test_without_classes_captions_are_of_training_images_from_all_over(task, tmp_path):
    pairs = {"images": np.zeros((40, 8, 8, 1), np.float32), "captions": np.array([f"number {i}" for i in range(40)])}
    np.savez(tmp_path / "pairs.npz", **pairs)
    data = Npz(path=str(tmp_path / "pairs.npz"))
    trained = [data.source("train")[i]["captions"] for i in range(len(data.source("train")))]
    captions = task.condition.wishes(data)
    assert len(captions) == 10 and captions == sorted(captions, key=trained.index)
    assert trained.index(captions[-1]) >= 0.8 * len(trained)


def test_pictures_that_cannot_be_read_are_passed_over_where_a_run_is_looked_at(tmp_path, task, parts):
    for i in range(40):
        Image.fromarray(np.full((8, 8), 6 * i, np.uint8)).save(tmp_path / f"{i:02d}.png")
        (tmp_path / f"{i:02d}.txt").write_text(f"picture {i}")
        if i % 4 == 0:
            (tmp_path / f"{i:02d}.png").write_bytes(b"no picture")
    data = Images(path=str(tmp_path), image_size=8, channels=1, on_bad="skip", test_fraction=0.4)
    torn = replace(task, data=data)
    sources = {split: data.source(split) for split in ("train", "test")}
    assert any(example is None for source in sources.values() for example in source)
    rows = list(torn.fixed_rows("test"))
    there = [example["image"] for example in sources["test"] if example is not None]
    np.testing.assert_array_equal([row["image"] for row in rows], there)
    assert np.isfinite(torn.validate(parts)["validation_loss"])
    captions = torn.condition.wishes(torn.data)
    assert len(captions) == 10
    assert set(captions) <= {example["captions"] for example in sources["train"] if example is not None}
