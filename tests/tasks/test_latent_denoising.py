"""Laws of latent diffusion: codes are what is noised, and pictures what people see."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import Codes, Digits
from genjax.diffusion.grids import ShiftedTimes
from genjax.errors import InputError
from genjax.models.autoencoder import Autoencoder
from genjax.models.dit import DiT
from genjax.parallel.rules import unbox
from genjax.quantisation.posterior import Posterior
from genjax.tasks import sampling
from genjax.tasks.conditions import Label
from genjax.tasks.couplings import Paired
from genjax.tasks.denoising import Sampler
from genjax.tasks.first_stage import FirstStage
from genjax.tasks.latent_denoising import LatentDenoising
from genjax.tasks.spaces import Latents, Pixels
from genjax.tasks.tokeniser_requests import CodesFolder
from genjax.training.task import Train
from tests.tasks.second_stages import ONE

MODEL = Autoencoder(image_channels=1, widths=(4, 4), blocks=1, z_channels=4, code_channels=3, moments=True, groups=2)
TASK = LatentDenoising(
    first_stage=FirstStage(path="none", model=MODEL, bottleneck=Posterior()),
    model=DiT(channels=3, patch_size=1, depth=1, num_heads=2, head_dim=4, num_classes=10),
    condition=Label(),
    space=Latents(scale=2.0, shift=0.5),
    sampler=Sampler(steps=2, guidance=1.0, grid=ShiftedTimes(1.0)),
    data=Digits(),
    train=Train(steps=2, batch_size=4, ema_decay=None),
)
WORDS = ["zero", "seven", "three"]


@pytest.fixture(scope="module")
def parts():
    return unbox(jax.jit(TASK.init)(jax.random.key(0)))


def first_of(parts):
    return TASK.first_stage.parts(parts.fixed["first_stage"])


def batch_of(task, count=3):
    rows = [task.prepare(task.data.source("test")[i], np.random.default_rng(0)) for i in range(count)]
    return {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}


def test_what_is_noised_are_the_means_that_the_encoder_names_scaled(parts):
    batch = batch_of(TASK)
    means = TASK.tokeniser.vectors_of(first_of(parts), np.asarray(batch["image"]))
    assert means.shape[1:] == TASK.shape == (4, 4, 3)
    np.testing.assert_allclose(TASK.x_0(parts, batch), (means - 0.5) * 2.0, atol=1e-6)


def test_codes_on_disk_are_noised_as_their_pictures_codes_are(parts, tmp_path):
    on_disk = replace(TASK, data=Codes(str(CodesFolder(TASK.tokeniser, first_of(parts)).write(tmp_path)), of=Digits()))
    on_disk.first_stage.check(on_disk.data)
    np.testing.assert_allclose(on_disk.x_0(parts, batch_of(on_disk)), TASK.x_0(parts, batch_of(TASK)), atol=1e-6)
    assert on_disk.shape == TASK.shape


def test_pictures_are_what_the_first_stage_draws_of_samples(parts):
    codes = TASK.sample(parts.trained, WORDS, seed=3)
    assert codes.shape == (3, 4, 4, 3)
    images = TASK.pictures(parts, WORDS, seed=3)
    np.testing.assert_array_equal(images, TASK.tokeniser.drawn_from(first_of(parts), codes))
    frames = TASK.pictures(parts, WORDS, seed=3, trajectory=True)
    assert frames.shape == (3, 3, 8, 8, 1)
    np.testing.assert_allclose(frames[-1], images, atol=1e-5)


def test_only_the_denoiser_learns_and_the_loss_is_of_codes(parts):
    assert set(parts.trained) == {"model"} and set(parts.fixed) == {"first_stage"}
    batch, keys = batch_of(TASK), jax.random.split(jax.random.key(0), 3)
    loss = TASK.loss(parts, batch, keys, {"rows": 3.0}).losses["loss"]
    pixels = parts._replace(fixed=jax.tree.map(lambda leaf: 2 * leaf, parts.fixed))
    assert np.isfinite(loss) and abs(loss - TASK.loss(pixels, batch, keys, {"rows": 3.0}).losses["loss"]) > 1e-4


def test_validation_sees_codes_too(parts):
    figures = TASK.validate(parts)
    assert np.isfinite(list(figures.values())).all()
    other = TASK.validate(parts._replace(fixed=jax.tree.map(lambda leaf: 2 * leaf, parts.fixed)))
    assert other["validation_loss"] != figures["validation_loss"]


def test_samples_are_shown_and_judged_as_pictures(parts):
    (drawn,) = TASK.request("sample")(TASK, parts)
    assert drawn.images.shape == (16, 8, 8, 1)
    (found,) = replace(TASK.request("evaluate"), num=20)(TASK, parts)
    assert found.values["samples"] == 20
    (preview,) = TASK.request("preview")(TASK, parts)
    assert preview.images.shape == (40, 8, 8, 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"space": Pixels()}, "what is drawn are codes: take Latents"),
        ({"model": replace(TASK.model, channels=1)}, "model.channels is 1, and what is noised has 3"),
        ({"first_stage": replace(TASK.first_stage, path="")}, "first_stage.path is the run of a tokeniser"),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(TASK, **change).check()


def test_ids_on_disk_are_no_vectors_and_are_refused(tmp_path):
    first = unbox(jax.jit(ONE.tokeniser(Digits()).init)(jax.random.key(3)))
    data = Codes(str(CodesFolder(ONE.tokeniser(Digits()), first).write(tmp_path)), of=Digits())
    with pytest.raises(InputError, match="are ids of AverageVQ, and vectors are denoised: take its pictures"):
        replace(TASK, first_stage=ONE, data=data).check()


@dataclass(frozen=True)
class WithNoise(Digits):
    """Digits, each with noise of its pixels."""

    def source(self, split):
        return [example | {"noise": example["image"]} for example in super().source(split)]


def test_codes_of_another_shape_noise_of_pixels_and_an_encoder_without_moments_are_refused_in_the_whole(tmp_path):
    first = unbox(jax.jit(ONE.tokeniser(Digits()).init)(jax.random.key(3)))
    data = Codes(str(CodesFolder(ONE.tokeniser(Digits()), first).write(tmp_path)), of=Digits())
    with pytest.raises(InputError, match="the codes of data.path are"):
        replace(TASK, data=data).check()
    with pytest.raises(InputError, match=r"noise is of shape \(8, 8, 1\), and what is noised of \(4, 4, 3\)"):
        replace(TASK, data=WithNoise(), coupling=Paired()).check()


def test_a_worse_run_of_another_first_stage_is_refused():
    other = replace(TASK, first_stage=replace(TASK.first_stage, path="another"))
    with pytest.raises(InputError, match="a worse run has the first stage of the run"):
        sampling.check_worse(TASK, other, TASK.sampler)


def test_couples_are_of_what_the_data_holds():
    with pytest.raises(InputError, match="--couples are of noise and what the data holds"):
        replace(TASK.request("sample"), couples=True).check(TASK)


def test_a_picture_to_start_from_is_of_pixels(parts):
    with pytest.raises(InputError, match="--image is a picture, and the space of this run is Latents"):
        replace(TASK.request("sample"), image="some.png").check(TASK)
