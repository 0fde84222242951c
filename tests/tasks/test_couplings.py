"""Laws of couplings: noise of a row's own, or that which a trained system has drawn it from."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from genjax.data import Couples, Digits
from genjax.diffusion.grids import UniformTimes
from genjax.diffusion.predictions import V
from genjax.diffusion.process import RectifiedFlow, noised
from genjax.diffusion.processes import EDM
from genjax.diffusion.solvers import DDIM, Euler
from genjax.errors import InputError
from genjax.tasks.conditions import Label, Nothing
from genjax.tasks.couplings import Drawn, Paired
from genjax.tasks.denoising import Denoising, Sampler
from genjax.tasks.spaces import Latents
from genjax.training.task import Train
from tests.tasks.networks import Silent

FLOW = Denoising(
    model=Silent(),
    condition=Nothing(),
    data=Digits(),
    sampler=Sampler(steps=3, guidance=1.0),
    train=Train(batch_size=4),
)


class Told(Silent):
    """Says as much as the label, whatever it sees."""

    @nn.compact
    def __call__(self, x_t, t, label):
        return (1 + self.param("says", nn.initializers.zeros, ())) * x_t + label[:, None, None, None]


def test_drawn_noise_is_standard_normal_and_that_of_the_rows_key():
    keys = jax.random.split(jax.random.key(0), 500)
    eps = Drawn().eps(keys, {}, (4, 4, 1))
    np.testing.assert_array_equal(Drawn().eps(keys[7:8], {}, (4, 4, 1))[0], eps[7])
    assert abs(eps.mean()) < 4 / 8000**0.5 and abs(eps.std() - 1) < 4 / 16000**0.5
    assert not Drawn().row({"image": None})


@pytest.fixture
def couples(tmp_path):
    """Twenty images of zeros, each with noise of its own, as the door writes them."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "couples.npz", images=np.zeros_like(noise), noise=noise, labels=np.arange(20) % 10)
    return Couples(path=str(tmp_path / "couples.npz"), test_fraction=0.2), noise


@pytest.mark.slow
def test_the_loss_of_pairs_is_that_of_their_noise_and_of_no_other(couples):
    """A network that says nothing has the loss (eps - x_0)^2 of the pairs, whatever the keys, and in validation too."""
    data, noise = couples
    task = replace(FLOW, data=data, coupling=Paired())
    parts, rng = task.init(jax.random.key(0)), np.random.default_rng(0)
    source = data.source("train")
    rows = [task.prepare(source[i], rng) for i in range(len(source))]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    keys = jax.random.split(jax.random.key(3), len(rows))
    loss = task.loss(parts, batch, keys, task.totals(batch)).losses["loss"]
    assert float(loss) == pytest.approx(np.square(batch["noise"]).mean(), rel=1e-5)
    held_out = np.stack([example["noise"] for example in data.source("test")])
    assert len(held_out) == 4
    assert task.validate(parts)["validation_loss"] == pytest.approx(np.square(held_out).mean(), rel=1e-5)
    np.testing.assert_array_equal(np.sort(np.concatenate([batch["noise"], held_out]), axis=0), np.sort(noise, axis=0))


def test_pairs_are_of_data_that_has_them():
    """As is found before anything is trained."""
    with pytest.raises(InputError, match="coupling is Paired, and the data has no noise that goes with its images"):
        replace(FLOW, coupling=Paired()).check()


@pytest.mark.parametrize(
    ("process", "first"), [(RectifiedFlow(), 1.0), (RectifiedFlow(), 0.8), (EDM(), 1.0)], ids=["flow", "late", "EDM"]
)
def test_couples_that_the_door_writes_are_the_ends_of_the_way(tmp_path, process, first):
    """Unclipped samples, with the eps by which they are noised to where they began, and the labels that were asked."""
    grid = UniformTimes(first=first)
    task = Denoising(
        model=Told(),
        condition=Label(),
        process=process,
        prediction=V(),
        data=Digits(),
        sampler=Sampler(DDIM(), steps=5, guidance=1.0, grid=grid),
    )
    parts = task.init(jax.random.key(0))
    asked = replace(task.request("sample"), num=6, seed=3, couples=True)
    asked.check(task)
    (output,) = asked(task, parts)
    arrays = output.arrays
    raw = replace(task, space=Latents())
    states = raw.sample(parts.trained, asked.words(task), seed=3, trajectory=True)
    np.testing.assert_allclose(arrays["images"], states[-1], rtol=1e-5, atol=1e-5)
    assert np.abs(arrays["images"]).max() > 1
    x_t = noised(process, jnp.asarray(arrays["images"]), jnp.asarray(arrays["noise"]), jnp.float32(first))
    np.testing.assert_allclose(x_t, states[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(arrays["labels"], np.arange(6))
    path = output.write(tmp_path)
    read = Couples(path=str(path))
    assert path.name == "couples.npz" and len(read.source("train")) + len(read.source("test")) == 6


def test_couples_of_latents_are_in_the_scale_of_the_data():
    """And their noise in that of x_0, of unit variance."""
    task = replace(FLOW, space=Latents(scale=0.2), sampler=Sampler(Euler(), steps=5, guidance=1.0, grid=UniformTimes()))
    parts = task.init(jax.random.key(0))
    (output,) = replace(task.request("sample"), num=3, couples=True)(task, parts)
    np.testing.assert_allclose(output.arrays["images"], task.sample(parts.trained, [""] * 3, seed=0), rtol=1e-6)
    np.testing.assert_allclose(output.arrays["noise"], task.noise(0, 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trajectory": True}, "not with --image, --classifier, --worse or --trajectory"),
        ({"solver": DDIM(eta=1.0)}, "--couples are of noise that decides the sample, and DDIM draws more"),
    ],
)
def test_what_is_no_couple_is_refused(changes, sentence):
    task = replace(FLOW, prediction=V())
    with pytest.raises(InputError, match=sentence):
        replace(task.request("sample"), couples=True, **changes).check(task)


def test_texts_make_no_couples(task):
    with pytest.raises(InputError, match="--couples have labels, and this run is told texts"):
        replace(task.request("sample"), couples=True).check(task)
