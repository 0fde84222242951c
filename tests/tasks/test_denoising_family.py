"""Laws of the family as compositions of one task: DDPM, EDM, score SDEs and flows, with a U-Net or DiT, on digits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from genjax.data import Images
from genjax.diffusion.grids import ChainTimes, KarrasSigmas, UniformTimes
from genjax.diffusion.learned_variance import LearnedVariance
from genjax.diffusion.mean_velocity import MeanVelocity
from genjax.diffusion.predictions import Eps, Preconditioned, V
from genjax.diffusion.process import RectifiedFlow, like, noised
from genjax.diffusion.processes import DDPM, EDM, VE, VP
from genjax.diffusion.solvers import DDIM, Ancestral, DPMpp2M, EDMHeun, Euler, Jump, ReverseDiffusion
from genjax.diffusion.times import ChainSteps, LogitNormal, LogNormal, Stratified, Uniform
from genjax.diffusion.weightings import MinSNR
from genjax.errors import InputError
from genjax.models.dit import DiT
from genjax.models.mmdit import MMDiT
from genjax.models.unet import UNet
from genjax.parallel.rules import unbox
from genjax.tasks import denoising
from genjax.tasks.conditions import Label, Nothing
from genjax.tasks.denoising import Denoising, Sampler
from genjax.tasks.sampling import Worse, check
from genjax.tasks.spaces import Latents
from genjax.tasks.starts import Start
from genjax.training.task import Train


class Convolution(nn.Module):
    """One of 3 x 3, and a bias that grows with time; fresh, it says nothing, as the others do. It compiles quickly."""

    channels: int = 1

    @nn.compact
    def __call__(self, x_t, t):
        bias = self.param("of_time", nn.initializers.zeros, ()) * like(t, x_t)
        return nn.Conv(self.channels, (3, 3), kernel_init=nn.initializers.zeros)(x_t) + bias


UNET = UNet(channels=1, widths=(8,), blocks=1, attention_levels=(), middle_attention=False, groups=4)
DIT = DiT(channels=1, patch_size=2, depth=1, num_heads=1, head_dim=8, num_classes=10)
DATA = Images(image_size=8, channels=1)


def system(**parts):
    return Denoising(data=DATA, train=Train(batch_size=4), **parts)


FAMILY = {
    "ddpm": system(
        model=UNET.clone(learned_variance=True),
        condition=Nothing(),
        process=DDPM(),
        prediction=LearnedVariance(vlb_weight=0.0),
        times=ChainSteps(),
        sampler=Sampler(DDIM(eta=1.0), steps=3, guidance=1.0, grid=ChainTimes()),
    ),
    "edm": system(
        model=Convolution(),
        condition=Nothing(),
        process=EDM(),
        prediction=Preconditioned(),
        times=LogNormal(),
        sampler=Sampler(EDMHeun(), steps=3, guidance=1.0, grid=KarrasSigmas()),
    ),
    "score_sde": system(
        model=Convolution(),
        condition=Nothing(),
        process=VE(),
        prediction=Eps(unit_inputs=True),
        times=Uniform(),
        sampler=Sampler(ReverseDiffusion(), steps=3, guidance=1.0, grid=UniformTimes()),
    ),
    "dit": system(
        model=DIT,
        condition=Label(),
        process=VP(),
        prediction=V(),
        weighting=MinSNR(),
        times=Uniform(),
        draws=Stratified(),
        sampler=Sampler(DPMpp2M(), steps=3, guidance=2.0, grid=UniformTimes(last=1e-3)),
    ),
}
each = pytest.mark.parametrize("name", FAMILY)


@pytest.fixture(scope="module")
def fresh():
    """Parts of each system, made once."""
    return {name: jax.jit(lambda task=task: unbox(task.init(jax.random.key(0))))() for name, task in FAMILY.items()}


def random_like(parts):
    return jax.tree.map(lambda leaf: 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), parts)


@each
def test_a_fresh_network_says_nothing_and_its_loss_is_the_mean_square_of_the_target(name, fresh):
    """Weighted; of 2,000 rows, to five deviations of a mean of squares."""
    task = replace(FAMILY[name], train=Train(batch_size=2000))
    rng = np.random.default_rng(0)
    row = task.prepare(DATA.source("train")[7], rng)
    batch = {field: jnp.broadcast_to(value, (2000, *np.shape(value))) for field, value in row.items()}
    keys = jax.random.split(jax.random.key(1), 2000)

    def expected(keys):
        """By the definition, with noise of its own."""
        t = task.times.quantile((jnp.arange(2000) + 0.5) / 2000, task.process)
        eps = jax.random.normal(keys[0], batch["image"].shape)
        target = task.prediction.target(task.process, batch["image"], eps, t)
        weight = jnp.ones(2000)
        if task.weighting != Denoising().weighting:
            # On v of a process that preserves variance: min(SNR, gamma) / (SNR + 1).
            snr = jnp.square(task.process.alpha(t) / task.process.sigma(t))
            weight = jnp.minimum(snr, task.weighting.gamma) / (snr + 1)
        return (weight * jnp.square(target).mean((1, 2, 3))).mean()

    loss = jax.jit(lambda parts: task.loss(parts, batch, keys, task.totals(batch)).losses["loss"])(fresh[name])
    assert float(loss) == pytest.approx(float(jax.jit(expected)(keys)), rel=5 * np.sqrt(2 / (64 * 2000)) + 0.03)


@pytest.mark.slow
@each
def test_it_draws_pictures_that_depend_on_their_own_key_alone(name, fresh):
    """Also where steps draw noise; three of five pictures, in two batches, and in one."""
    task, words = FAMILY[name], [""] * 5 if isinstance(FAMILY[name].condition, Nothing) else ["one"] * 5
    together = task.sample(fresh[name].trained, words, seed=3)
    apart = task.sample(fresh[name].trained, words, seed=3, batch_size=3)
    assert together.shape == (5, 8, 8, 1) and np.abs(together).max() <= 1
    np.testing.assert_allclose(together, apart, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_a_network_that_says_nothing_of_noise_leaves_what_it_starts_from(fresh):
    """DDIM without noise, for eps = 0: x_0 = x_t / alpha at every step, so that VE's samples are its prior."""
    sampler = Sampler(DDIM(), steps=5, guidance=1.0, grid=UniformTimes())
    trained = fresh["score_sde"].trained
    states = FAMILY["score_sde"].sample(trained, [""] * 64, seed=0, sampler=sampler, trajectory=True)
    np.testing.assert_allclose(states[-1], states[0], atol=1e-6)
    inside = states[0][np.abs(states[0]) < 1]
    assert inside.size < 0.1 * states[0].size  # of a prior with a deviation of 50, cut to [-1, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: replace(FAMILY["dit"], sampler=Sampler(DDIM(), guidance=1.0, grid=ChainTimes())), "ChainTimes"),
        (lambda: replace(FAMILY["ddpm"], condition=Label()), "model.num_classes is 0, and the data has 10 classes"),
        (lambda: replace(FAMILY["dit"], model=DIT.clone(num_classes=5)), "model.num_classes is 5"),
        (lambda: replace(FAMILY["ddpm"], model=UNET), "says 2 channels about 1"),
        (lambda: replace(FAMILY["dit"], process=RectifiedFlow(), prediction=Eps()), "Eps needs some data"),
        (lambda: replace(FAMILY["dit"], model=MMDiT(channels=1)), "MMDiT does not take what a condition of Label"),
        (lambda: replace(FAMILY["dit"], condition=Nothing()), "^sampler.guidance is 2, and a condition of Nothing"),
        (lambda: replace(FAMILY["ddpm"], prediction=Eps()), "output is of shape .8, 8, 2. where Eps of .8, 8, 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_a_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence):
        change().check()


@pytest.mark.parametrize("first", [80.0, 4.0])
def test_a_fresh_network_of_edm_draws_noise_with_the_deviation_of_the_data(fresh, first):
    """F = 0 is exact where the data is N(0, sigma_data^2): wherever a grid starts, samples have that deviation."""
    sampler = Sampler(EDMHeun(), steps=30, guidance=1.0, grid=KarrasSigmas(s_max=first))
    task = replace(FAMILY["edm"], space=Latents())
    samples = task.sample(fresh["edm"].trained, [""] * 64, seed=0, sampler=sampler)
    # The start is that of data with a deviation of 1; of n numbers a deviation is known to 1 / sqrt(2 n).
    expected = 0.5 * np.hypot(1, first) / np.hypot(0.5, first)
    assert samples.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * 64 * 64))


def test_the_network_sees_what_the_prediction_gives_it_when_samples_are_drawn(fresh):
    """A network that says something, and the same that sees inputs of unit variance, draw other pictures."""
    said, task = random_like(fresh["score_sde"]), replace(FAMILY["score_sde"], space=Latents())
    tasks = [replace(task, prediction=Eps(unit_inputs=unit)) for unit in (True, False)]
    unit, raw = (task.sample(said.trained, [""] * 2, seed=0) for task in tasks)
    assert np.abs(unit - raw).max() > 1e-3


class Wary(nn.Module):
    """Says no noise of any class, and a variance that the class alone decides."""

    channels: int = 1

    @nn.compact
    def __call__(self, x_t, t, label):
        mean = self.param("mean", nn.initializers.zeros, ()) * x_t
        return jnp.concatenate([mean, jnp.broadcast_to(label[:, None, None, None] / 10.0, x_t.shape)], axis=-1)


def test_guidance_leaves_a_learned_variance_alone():
    """Where the class decides the variance and nothing else, pictures are the same at every scale."""
    sampler = Sampler(Ancestral(variance="learned"), steps=3, grid=ChainTimes())
    task = system(
        model=Wary(), condition=Label(), space=Latents(), process=DDPM(), prediction=LearnedVariance(), sampler=sampler
    )
    trained, words = jax.jit(task.init)(jax.random.key(0)).trained, ["one", "seven"]
    drawn = [task.sample(trained, words, seed=0, sampler=replace(sampler, guidance=w)) for w in (2.0, 5.0)]
    np.testing.assert_allclose(*drawn, rtol=1e-6)
    assert np.isfinite(drawn[0]).all()


def test_times_are_those_of_the_density_the_draws_and_the_shift(fresh, monkeypatch):
    """With times for losses: even ones have the mean of the density to 1 / B, shifted ones that of the shift."""
    monkeypatch.setattr(
        denoising, "denoising_loss", lambda network, process, prediction, x_0, eps, t, weighting, keys: t
    )
    rows, keys = 512, jax.random.split(jax.random.key(2), 512)
    batch = {"image": jnp.zeros((rows, 8, 8, 1)), "label": jnp.zeros(rows, jnp.int32)}
    for shift, mean in ((1.0, 0.5), (3.0, 1.5 - 0.75 * np.log(3))):
        task = replace(FAMILY["dit"], time_shift=shift)
        loss = jax.jit(lambda *given, task=task: task.loss(*given).losses["loss"])
        told = loss(fresh["dit"], batch, keys, task.totals(batch))
        assert float(told) == pytest.approx(mean, abs=2 * shift / rows)
    assert FAMILY["dit"].couples_rows and not FAMILY["edm"].couples_rows


@pytest.mark.slow
def test_activations_are_dropped_in_training_and_not_when_samples_are_drawn(fresh):
    """Of each row by its own key; a dropout of 0 is none."""
    said = random_like(fresh["ddpm"])
    dropping = replace(FAMILY["ddpm"], model=FAMILY["ddpm"].model.clone(dropout=0.5))
    batch, keys = {"image": jnp.zeros((2, 8, 8, 1))}, jax.random.split(jax.random.key(2), 2)
    both = FAMILY["ddpm"], dropping
    kept, dropped = (jax.jit(task.loss)(said, batch, keys, {"rows": 2.0}).losses["loss"] for task in both)
    assert abs(float(kept) - float(dropped)) > 1e-4
    drawn = [task.sample(said.trained, [""] * 5, seed=0) for task in both]
    np.testing.assert_array_equal(*drawn)


def test_what_is_noised_has_the_scale_that_the_process_says(fresh):
    """Of a batch of zeros x_t is sigma eps: the network of EDM sees unit variance all the same."""
    task, t = FAMILY["edm"], jnp.linspace(0.01, 1, 64)
    eps = jax.random.normal(jax.random.key(0), (64, 128, 128, 1))

    @jax.jit
    def deviations(eps, t):
        x_t = noised(task.process, 0.5 * eps[::-1], eps, t)
        seen = task.prediction.inputs(task.process, x_t, t).x
        return seen.std((1, 2, 3)), x_t.std((1, 2, 3)), jnp.hypot(0.5, task.process.sigma(t))

    seen, noisy, expected = deviations(eps, t)
    np.testing.assert_allclose(seen, 1, atol=0.02)
    np.testing.assert_allclose(noisy, expected, rtol=0.02)


MEANFLOW = system(
    model=DIT.clone(intervals=True),
    condition=Label(),
    prediction=MeanVelocity(),
    times=LogitNormal(-0.4, 1.0),
    sampler=Sampler(Jump(), steps=2, guidance=1.0, grid=UniformTimes()),
)


@pytest.mark.slow
def test_a_jump_tells_the_network_where_it_ends_and_other_solvers_that_it_goes_nowhere():
    """By a network that says by how much: u = length makes x fall by the sum of the squares of the lengths."""

    class Length(nn.Module):
        channels: int = 1
        intervals: bool = True

        @nn.compact
        def __call__(self, x_t, t):
            return jnp.zeros_like(x_t) + self.param("one", nn.initializers.ones, ()) * like(t[:, 1], x_t)

    task = replace(MEANFLOW, model=Length(), condition=Nothing(), space=Latents())
    task.check()
    trained = task.init(jax.random.key(0)).trained
    noise = task.noise(0, 2)
    for solver, steps, fallen in ((Jump(), 1, 1.0), (Jump(), 4, 0.25), (Euler(), 4, 0.0)):
        drawn = task.sample(trained, [""] * 2, seed=0, sampler=replace(task.sampler, solver=solver, steps=steps))
        np.testing.assert_allclose(drawn, noise - fallen, atol=1e-6)


@pytest.mark.slow
def test_the_loss_of_mean_velocities_has_a_gradient_of_every_weight():
    """Through the forward derivative of attention and all else; fresh gates are closed, so the weights are random."""
    said = random_like(unbox(jax.jit(MEANFLOW.init)(jax.random.key(0))))
    batch = {"image": jnp.ones((4, 8, 8, 1)) / 3, "label": jnp.arange(4)}
    keys = jax.random.split(jax.random.key(2), 4)
    prediction = replace(MEANFLOW.prediction, instantaneous=0.0)

    @jax.jit
    def gradient(trained):
        task = replace(MEANFLOW, prediction=prediction)
        return jax.grad(
            lambda trained: task.loss(said._replace(trained=trained), batch, keys, {"rows": 4.0}).losses["loss"]
        )(trained)

    for path, leaf in jax.tree.leaves_with_path(gradient(said.trained)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": DIT}, "MeanVelocity tells the network where a step ends, and this DiT sees one time alone"),
        ({"model": UNET, "condition": Nothing()}, "this UNet sees one time alone"),
        ({"prediction": V()}, "Jump steps along mean velocities"),
    ],
)
def test_what_knows_no_ends_of_steps_is_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(MEANFLOW, **changes).check()


def test_a_network_of_intervals_with_a_prediction_of_one_time_is_refused():
    with pytest.raises(InputError, match="sees two times of a row"):
        replace(MEANFLOW, prediction=V(), sampler=replace(MEANFLOW.sampler, solver=Euler())).check()


def test_what_leads_a_jump_is_told_where_it_ends_too():
    """A worse network that says the length of the way, against one that says nothing, goes back by it."""

    class Says(nn.Module):
        factor: float
        channels: int = 1
        intervals: bool = True

        @nn.compact
        def __call__(self, x_t, t):
            one = self.param("one", nn.initializers.ones, ())
            return jnp.zeros_like(x_t) + self.factor * one * like(t[:, 1], x_t)

    silent, worse = (replace(MEANFLOW, model=Says(f), condition=Nothing(), space=Latents()) for f in (0.0, 1.0))
    trained = silent.init(jax.random.key(0)).trained
    noise = silent.noise(0, 2)
    for steps in (1, 4):
        sampler = replace(silent.sampler, steps=steps)
        drawn = silent.sample(trained, [""] * 2, seed=0, sampler=sampler, worse=Worse(worse, trained, 3.0))
        np.testing.assert_allclose(drawn, noise + 2 / steps, atol=1e-5)


def test_an_inversion_does_not_jump():
    start = Start(np.zeros((1, 8, 8, 1), np.float32), 1.0, inverted=True)
    with pytest.raises(InputError, match="Jump steps from noise to data"):
        check(MEANFLOW, MEANFLOW.sampler, start)


def test_the_two_times_of_a_row_are_drawn_apart(monkeypatch):
    """Of two that are uniform the mean distance is a third, and they do not go together."""
    seen = []

    def loss(network, process, prediction, x_0, eps, t, weighting, keys):
        seen.append((t, *prediction.interval(process, t, keys)))
        return t

    monkeypatch.setattr(denoising, "denoising_loss", loss)
    prediction = MeanVelocity(ends=Uniform(), instantaneous=0.0)
    task = replace(MEANFLOW, times=Uniform(), prediction=prediction)
    batch = {"image": jnp.zeros((2000, 8, 8, 1)), "label": jnp.zeros(2000, jnp.int32)}
    parts = unbox(jax.eval_shape(task.init, jax.random.key(0)))
    task.loss(parts, batch, jax.random.split(jax.random.key(2), 2000), task.totals(batch))
    t, later, earlier = map(np.asarray, seen[0])
    other = np.where(later == t, earlier, later)
    assert (later - earlier).mean() == pytest.approx(1 / 3, abs=0.03)
    assert abs(np.corrcoef(t, other)[0, 1]) < 0.08
