"""Laws of couplings: noise of a row's own, or that which a trained system has drawn it from."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import Couples, Digits
from genjax.errors import InputError
from genjax.tasks.conditions import Nothing
from genjax.tasks.couplings import Drawn, Paired
from genjax.tasks.denoising import Denoising, Sampler
from genjax.training.task import Train
from tests.tasks.networks import Silent

FLOW = Denoising(
    model=Silent(),
    condition=Nothing(),
    data=Digits(),
    sampler=Sampler(steps=3, guidance=1.0),
    train=Train(batch_size=4),
)


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
    with pytest.raises(InputError, match="coupling is Paired, and the data has no noise that goes with its images"):
        replace(FLOW, coupling=Paired()).prepare(Digits().source("train")[0], None)


def test_couples_that_the_door_writes_are_the_ends_of_the_way(tmp_path):
    """Noise that a sample began at, and the sample as it came, unclipped; of a flow x' = -x."""
    task = replace(FLOW, sampler=Sampler(steps=50, guidance=1.0))
    parts = task.init(jax.random.key(0))._replace(trained={"model": {"says": jnp.float32(-1.0)}})
    (output,) = replace(task.request("sample"), num=6, couples=True)(task, parts)
    arrays = output.arrays
    assert np.abs(arrays["images"]).max() > 1
    # dx/dt = -x from t = 1 to 0, by Euler on the grid of the run.
    steps = -np.diff(task.sampler.times(task.process, task.prediction))
    np.testing.assert_allclose(arrays["images"], arrays["noise"] * np.prod(1 + steps), rtol=1e-4)
    np.testing.assert_array_equal(arrays["labels"], -1)
    path = output.write(tmp_path)
    assert path.name == "couples.npz"
    read = Couples(path=str(path))
    assert len(read.source("train")) + len(read.source("test")) == 6
