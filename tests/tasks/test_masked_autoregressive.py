"""Laws of masked autoregressive models: exact heads give exact vectors, in order, led by a condition."""

from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from genjax.data import Codes, Digits
from genjax.diffusion.mean_velocity import MeanVelocity
from genjax.diffusion.predictions import Eps
from genjax.diffusion.process import prior_std
from genjax.diffusion.processes import EDM, CosineVP
from genjax.diffusion.solvers import Ancestral
from genjax.diffusion.times import LogitNormal
from genjax.diffusion.weightings import Unweighted
from genjax.errors import InputError
from genjax.language.masked_decoding import draw_masks, high_share, masked_counts
from genjax.models.autoencoder import Autoencoder
from genjax.models.mar import MAR
from genjax.parallel.rules import unbox
from genjax.quantisation.posterior import Posterior
from genjax.tasks import masked_autoregressive, sampling
from genjax.tasks.code_sampling import MaskedVectorSampler
from genjax.tasks.first_stage import FirstStage
from genjax.tasks.masked_autoregressive import MaskedAutoregressive
from genjax.tasks.spaces import Latents
from genjax.tasks.token_conditions import StartToken
from genjax.tasks.tokeniser_requests import CodesFolder
from genjax.training.task import Train
from tests.tasks.second_stages import ONE

FIRST = FirstStage(
    path="none",
    model=Autoencoder(image_channels=1, widths=(4, 4), blocks=1, z_channels=4, code_channels=3, moments=True, groups=2),
    bottleneck=Posterior(),
)
TASK = MaskedAutoregressive(
    first_stage=FIRST,
    model=MAR(vector_width=3, vocabulary=11, positions=17, width=8, depth=1, num_heads=2, head_width=8, head_depth=1),
    space=Latents(scale=2.0, shift=0.5),
    sampler=MaskedVectorSampler(steps=4, denoising_steps=3),
    data=Digits(),
    train=Train(steps=2, batch_size=4, ema_decay=None),
)
WORDS = ["zero", "seven", "three"]
KEYS = jax.random.split(jax.random.key(5), 3)
PREFIX = jnp.array([[0], [7], [3]])


def like_task(kind, **changes):
    """The same task, of a subclass whose network is exact."""
    task = replace(TASK, **changes)
    return kind(**{each.name: getattr(task, each.name) for each in fields(task)})


def drawn(task, **how):
    """x_0 (B,N,D) of the class of each prefix, of networks that have no weights."""
    sampler = replace(task.sampler, **how)
    vectors = task.draw_rows({}, PREFIX, KEYS, sampler.program(), sampler.numbers())
    return np.asarray(task.space.to_x_0(vectors)).reshape(3, 16, 3)


class Told(MaskedAutoregressive):
    """z is where a vector must go, and the head the exact velocity towards it."""

    def read(self, trained, prefix, vectors, hidden):
        where = prefix[..., None] + 0.1 * jnp.arange(16)[:, None] + jnp.array([0.0, 0.01, 0.02])
        return jnp.where(hidden[..., None], where, jnp.nan)  # of a place that is known nothing is asked

    def denoise(self, trained, x_t, t, z):
        return (x_t - z) / t[:, None]


@pytest.mark.parametrize("steps", [1, 5, 16])
def test_an_exact_head_draws_each_vector_at_its_place(steps):
    found = drawn(like_task(Told), steps=steps)
    wanted = np.array([0, 7, 3])[:, None, None] + 0.1 * np.arange(16)[:, None] + [0, 0.01, 0.02]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


class Counting(Told):
    """Each vector is one more than the sum of those that are known."""

    def read(self, trained, prefix, vectors, hidden):
        return jnp.broadcast_to(1 + vectors.sum(axis=1, keepdims=True), vectors.shape)


def test_each_step_is_told_all_vectors_of_those_before_it():
    found = drawn(like_task(Counting), steps=16)
    np.testing.assert_allclose(np.sort(found[..., 0], axis=1), [2.0 ** np.arange(16)] * 3, rtol=1e-5)
    assert len({tuple(row) for row in found[..., 0].argsort(axis=1)}) == 3


class Led(MaskedAutoregressive):
    """The velocity is -1 of a class, and 0 of the null."""

    def read(self, trained, prefix, vectors, hidden):
        return jnp.broadcast_to(jnp.where(prefix == 10, 0.0, 1.0)[..., None], vectors.shape)

    def denoise(self, trained, x_t, t, z):
        return -z


def test_guidance_grows_from_one_with_what_is_known():
    found = drawn(like_task(Led), guidance=3.0, temperature=0.0)
    after = np.append(masked_counts(16, 4)[:-1], 0)
    scales = np.repeat(1 + 2 * (1 - after / 16), -np.diff(np.append(16, after)))
    np.testing.assert_allclose(np.sort(found[..., 0], axis=1), [np.sort(scales)] * 3, rtol=1e-5)
    np.testing.assert_allclose(drawn(like_task(Led), temperature=0.0), 1.0, rtol=1e-5)


class Still(Led):
    """The velocity is 0: a vector is the noise that it began at."""

    def read(self, trained, prefix, vectors, hidden):
        return jnp.zeros_like(vectors)


def test_noise_is_normal_scaled_by_the_temperature_and_of_each_place_its_own():
    noise = drawn(like_task(Still))
    np.testing.assert_allclose(drawn(like_task(Still), temperature=0.5), noise / 2, atol=1e-6)
    assert len(np.unique(noise)) == noise.size and abs(noise.std() - 1) < 0.15


class Silent(Still):
    """There is no noise in anything: a vector stays where it began."""

    def denoise(self, trained, x_t, t, z):
        return jnp.zeros_like(x_t)


def test_a_vector_begins_at_the_deviation_of_its_process():
    task = like_task(Silent, process=EDM(), prediction=Eps())
    first = sampling.times(task.sampler.solver, task.sampler.grid, 3, task.process, task.prediction)[0]
    assert prior_std(task.process, first) > 50
    np.testing.assert_allclose(drawn(task), prior_std(task.process, first) * drawn(like_task(Still)), rtol=1e-5)


def test_noise_of_steps_is_other_noise_than_that_of_the_start(monkeypatch):
    seen = []

    def watched(solver, process, denoised, x, times, *, keys):
        jax.debug.callback(lambda *given: seen.append(given), x, jax.random.key_data(keys))
        return x

    monkeypatch.setattr(masked_autoregressive, "integrate", watched)
    drawn(like_task(Still))
    jax.effects_barrier()
    keys = np.concatenate([np.asarray(given) for _, given in seen])
    assert len({tuple(key) for key in keys}) == len(keys) > 48
    for start, given in seen:
        again = jax.vmap(lambda key: jax.random.normal(key, (3,)))(jax.random.wrap_key_data(given))
        assert not np.isclose(again, start).any(axis=0).all()
        assert abs(np.corrcoef(np.ravel(again), np.ravel(start))[0, 1]) < 0.5


class Recording(MaskedAutoregressive):
    """Keeps what the head sees."""

    def read(self, trained, prefix, vectors, hidden):
        return jnp.zeros_like(vectors)

    def denoise(self, trained, x_t, t, z):
        SEEN.append((np.asarray(x_t), np.asarray(t)))
        return jnp.zeros_like(x_t)


SEEN = []


def test_every_vector_has_times_of_the_density_and_noises_of_its_own():
    task = like_task(Recording, noises=3, times=LogitNormal(0.5, 0.7))
    task.losses(parts_of(), PREFIX, jnp.zeros((3, 16, 3)), KEYS)
    x_t, t = SEEN.pop()
    assert len(np.unique(t)) == 3 * 3 * 16
    assert scipy.stats.kstest(scipy.special.logit(t), scipy.stats.norm(0.5, 0.7).cdf).pvalue > 0.01
    noise = x_t / t[:, None]  # of vectors that are 0
    assert len(np.unique(noise.round(5))) > 400
    assert scipy.stats.kstest(noise.ravel(), scipy.stats.norm.cdf).pvalue > 0.01


def test_the_weighting_counts():
    losses = [
        task.losses(parts_of(), PREFIX, jnp.ones((3, 16, 3)), KEYS)
        for task in (like_task(Recording), like_task(Recording, weighting=Twice()))
    ]
    np.testing.assert_allclose(losses[1], 2 * losses[0], rtol=1e-6)
    assert len({float(loss) for loss in losses[0]}) == 3


@dataclass(frozen=True)
class Twice(Unweighted):
    """Twice the weight."""

    def weight(self, process, t):
        return 2 * super().weight(process, t)


def test_in_half_precision_the_networks_compute_in_it_and_the_loss_does_not(monkeypatch):
    task = replace(TASK, train=replace(TASK.train, precision="bf16"))
    parts, batch = random_parts(), batch_of(TASK)
    z = task.read(parts.trained, batch["prefix"], task.codes_of(parts, batch), jnp.ones((3, 16), bool))
    said = task.denoise(parts.trained, jnp.zeros((3, 3)), jnp.ones(3), z[:, 0])
    assert z.dtype == jnp.bfloat16 and said.dtype == jnp.float32
    loss = [each.loss(parts, batch, KEYS, {"rows": 3.0}).losses["loss"] for each in (task, TASK)]
    assert loss[0].dtype == jnp.float32 and loss[0] != loss[1]
    np.testing.assert_allclose(*loss, rtol=0.05)


class Exact(MaskedAutoregressive):
    """Knows what each vector is, through the noise too."""

    def read(self, trained, prefix, vectors, hidden):
        return vectors

    def denoise(self, trained, x_t, t, z):
        return (x_t - z) / t[:, None]


def test_the_loss_is_none_at_an_exact_head_and_two_for_one_that_says_nothing_of_normal_vectors():
    codes = jax.random.normal(jax.random.key(1), (400, 16, 3))
    prefix, keys = jnp.zeros((400, 1), jnp.int32), jax.random.split(jax.random.key(2), 400)
    parts = unbox(jax.jit(TASK.init)(jax.random.key(0)))
    assert like_task(Exact).losses(parts, prefix, codes, keys).max() < 1e-4
    fresh = TASK.losses(parts, prefix, codes, keys)  # |eps - x_0|^2 of two normal numbers
    np.testing.assert_allclose(fresh.mean(), 2.0, rtol=0.02)


class OnlyMasked(Exact):
    """Right where a vector is masked, and far off where it is not."""

    def read(self, trained, prefix, vectors, hidden):
        return vectors + jnp.where(hidden[..., None], 0.0, 1e3)


def test_places_that_are_known_are_not_scored():
    codes = jax.random.normal(jax.random.key(1), (3, 16, 3))
    losses = np.asarray(like_task(OnlyMasked).losses(parts_of(), PREFIX, codes, KEYS))
    masks = jax.vmap(lambda key: jax.random.split(key, 3)[0])(KEYS)
    assert not np.asarray(draw_masks(masks, 16, high_share)).all()
    assert (losses < 1e-4).all()


def parts_of():
    return unbox(jax.jit(TASK.init)(jax.random.key(0)))


def random_parts():
    parts = parts_of()
    rng = np.random.default_rng(0)
    model = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), parts.trained["model"])
    return parts._replace(trained={"model": model})


def batch_of(task, count=3):
    rows = [task.prepare(task.data.source("test")[i], np.random.default_rng(0)) for i in range(count)]
    return {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}


def test_all_of_the_network_learns_and_the_first_stage_stays():
    parts, batch = random_parts(), batch_of(TASK)
    assert set(parts.trained) == {"model"} and set(parts.fixed) == {"first_stage"}

    def loss(trained):
        return TASK.loss(parts._replace(trained=trained), batch, KEYS, {"rows": 3.0}).losses["loss"]

    gradients = jax.jit(jax.grad(loss))(parts.trained)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_the_vectors_are_the_scaled_means_of_the_encoder_and_the_same_from_disk(tmp_path):
    parts, batch = parts_of(), batch_of(TASK)
    first = FIRST.parts(parts.fixed["first_stage"])
    means = TASK.tokeniser.vectors_of(first, np.asarray(batch["image"]))
    np.testing.assert_allclose(TASK.codes_of(parts, batch), (means.reshape(3, 16, 3) - 0.5) * 2, atol=1e-6)
    on_disk = replace(TASK, data=Codes(str(CodesFolder(TASK.tokeniser, first).write(tmp_path)), of=Digits()))
    np.testing.assert_allclose(on_disk.codes_of(parts, batch_of(on_disk)), TASK.codes_of(parts, batch), atol=1e-6)


def test_samples_are_pictures_of_the_vectors_and_depend_on_their_own_number_and_word_alone():
    parts = random_parts()
    codes = TASK.draw(parts, WORDS, seed=2)
    assert codes.shape == (3, 4, 4, 3) and np.isfinite(codes).all()
    first = FIRST.parts(parts.fixed["first_stage"])
    np.testing.assert_array_equal(TASK.sample(parts, WORDS, seed=2), TASK.tokeniser.drawn_from(first, codes))
    np.testing.assert_allclose(TASK.draw(parts, WORDS[:1], seed=2), codes[:1], atol=1e-5)
    assert not np.allclose(TASK.draw(parts, WORDS, seed=3), codes)


def test_what_is_known_to_be_noise_of_ddpm_is_drawn_by_its_chain():
    """The setting of the paper: exact noise of a place's vector is denoised to it by ancestral steps."""

    class Noise(Told):
        def denoise(self, trained, x_t, t, z):
            alpha, sigma = (each(t)[:, None] for each in (self.process.alpha, self.process.sigma))
            return (x_t - alpha * z) / sigma

    task = like_task(Noise, process=CosineVP(), prediction=Eps())
    found = drawn(task, solver=Ancestral(), denoising_steps=50)
    wanted = np.array([0, 7, 3])[:, None, None] + 0.1 * np.arange(16)[:, None] + [0, 0.01, 0.02]
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_it_is_asked_for_samples_figures_and_a_preview():
    parts = random_parts()
    for door in ("sample", "evaluate", "preview"):
        TASK.request(door).check(TASK)
    (drawn,) = TASK.request("sample")(TASK, parts)
    assert drawn.images.shape == (16, 8, 8, 1)
    assert "16 vectors in 4 steps, each by 3 of Euler, guidance 1" in drawn.said
    (found,) = replace(TASK.request("evaluate"), num=20)(TASK, parts)
    assert found.values["samples"] == 20 and "first_stage/psnr" in found.values


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": TASK.model.clone(vector_width=2)}, "model.vector_width is 2, and there are 3 numbers of a vector"),
        ({"model": TASK.model.clone(vocabulary=12)}, "model.vocabulary is 12, and there are 11 ids of the condition"),
        ({"noises": 0}, "noises is a number of draws, at least 1, not 0"),
        ({"prediction": MeanVelocity()}, "prediction is MeanVelocity, and a head says one vector of one time"),
        ({"sampler": MaskedVectorSampler(steps=17)}, "steps is a number of steps from 1 to 16"),
        ({"sampler": MaskedVectorSampler(guidance=2.0), "condition": StartToken(),
          "model": TASK.model.clone(vocabulary=1)}, "a condition of StartToken is never dropped"),
        ({"prediction": Eps()}, "Eps"),
        ({"sampler": MaskedVectorSampler(steps=4, temperature=0.5, solver=Ancestral())},
         "temperature scales the noise of the start alone, and Ancestral draws more"),
        ({"sampler": MaskedVectorSampler(steps=4, solver=Ancestral(variance="learned"))},
         "variance of the solver is learned, and Velocity learns none"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(TASK, **change).check()


def test_ids_on_disk_are_no_vectors_and_are_refused(tmp_path):
    first = unbox(jax.jit(ONE.tokeniser(Digits()).init)(jax.random.key(3)))
    data = Codes(str(CodesFolder(ONE.tokeniser(Digits()), first).write(tmp_path)), of=Digits())
    with pytest.raises(InputError, match="are ids of AverageVQ, and vectors are denoised: take its pictures"):
        replace(TASK, first_stage=ONE, data=data).check()
