"""Laws of classifiers of noised images: what they learn, what they are asked, and where they lead samples."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import Digits, Npz
from genjax.diffusion.grids import KarrasSigmas
from genjax.diffusion.predictions import Preconditioned
from genjax.diffusion.process import RectifiedFlow, noised
from genjax.diffusion.processes import EDM
from genjax.diffusion.solvers import EDMHeun
from genjax.errors import InputError
from genjax.interop.trees import write_tree
from genjax.models.noisy_classifier import NoisyClassifier
from genjax.parallel.rules import unbox
from genjax.runs.directory import open_run
from genjax.tasks.conditions import Label, Nothing
from genjax.tasks.denoising import Denoising, Sampler
from genjax.tasks.noisy_classification import TIMES, Guide, NoisyClassification
from genjax.tasks.spaces import Latents
from genjax.training.task import Train
from tests.tasks.networks import Sided, Silent

TASK = NoisyClassification(model=Sided(num_classes=10), process=EDM(), data=Digits(), train=Train(batch_size=8))


def rows(task, number):
    source = task.data.source("train")
    prepared = [task.prepare(source[i], None) for i in range(number)]
    return {name: np.stack([row[name] for row in prepared]) for name in prepared[0]}


class TwoDigits(Digits):
    """Zeros and ones."""

    @property
    def class_names(self):
        return ("zero", "one")


@pytest.mark.slow
def test_the_loss_is_the_cross_entropy_at_the_noised_image_and_adds_up_over_rows():
    """By hand where every time is 1."""
    task = replace(TASK, model=Sided())
    parts, batch = task.init(jax.random.key(0)), rows(task, 8) | {"label": np.arange(8) % 2}
    keys = jax.random.split(jax.random.key(1), 8)
    whole = task.loss(parts, batch, keys, task.totals(batch))
    halves = [
        task.loss(parts, {k: v[i : i + 4] for k, v in batch.items()}, keys[i : i + 4], task.totals(batch))
        for i in (0, 4)
    ]
    assert float(whole.losses["loss"]) == pytest.approx(sum(float(half.losses["loss"]) for half in halves), rel=1e-5)

    class Late(type(task.times)):
        def quantile(self, u, process):
            return jnp.ones_like(u)

    late = replace(task, times=Late())
    eps = jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[1], (8, 8, 1)))(keys)
    odds = 0.1 * noised(EDM(), batch["image"], eps, jnp.ones(8)).sum((1, 2, 3))
    sides = np.where(batch["label"] == 0, 1, -1)
    sums = late.loss(parts, batch, keys, task.totals(batch))
    assert float(sums.losses["loss"]) == pytest.approx(float(np.logaddexp(0, -sides * odds).mean()), rel=1e-4)
    right, counted = sums.metrics["accuracy"]
    assert float(right / counted) == pytest.approx(float((sides * odds > 0).mean()))


def test_it_is_judged_at_eight_times():
    task = TASK
    figures = task.validate(task.init(jax.random.key(0)))
    assert figures == task.validate(task.init(jax.random.key(0)))
    at = [figures[f"validation_accuracy/t={t:.4f}"] for t in TIMES]
    assert figures["validation_accuracy"] == pytest.approx(np.mean(at), rel=1e-6)
    (told,) = task.request("evaluate")(task, task.init(jax.random.key(0)))
    assert told.values == figures


def test_what_it_shows_are_noised_images_and_what_it_takes_them_for():
    task = replace(TASK, model=Sided())
    asked = replace(task.request("sample"), num=6, t=0.0)
    asked.check(task)
    (pictures,) = asked(task, task.init(jax.random.key(0)))
    test = [task.data.source("test")[i]["image"] for i in range(6)]
    np.testing.assert_allclose(pictures.images, test, atol=1e-6)
    assert pictures.captions == ["zero" if image.sum() > 0 else "one" for image in test]
    for wrong, sentence in (({"num": 0}, "--num"), ({"t": 1.5}, "--t is a time in .0, 1., not 1.5")):
        with pytest.raises(InputError, match=sentence):
            replace(asked, **wrong).check(task)


def test_parts_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="^model.num_classes is 2, and the data has 10 classes"):
        replace(TASK, model=Sided()).check()
    np.savez(tmp_path / "plain.npz", images=np.zeros((4, 8, 8, 1), np.float32), captions=np.array(["a"] * 4))
    with pytest.raises(InputError, match="an image of the data has no class"):
        rows(replace(TASK, data=Npz(path=str(tmp_path / "plain.npz"))), 1)


# ------------------------------------------------------------------------------------------------------------- guidance

STD = 0.5
DENOISING = Denoising(
    model=Silent(),
    condition=Nothing(),
    space=Latents(),
    process=EDM(),
    prediction=Preconditioned(sigma_data=STD),
    sampler=Sampler(EDMHeun(), steps=40, guidance=1.0, grid=KarrasSigmas()),
    data=Digits(),
)


class Certain(Sided):
    """log p(y = 0 | x_t) = min(0, slope E[sum x_0 | x_t] - large): linear in x_t wherever samples go."""

    def __call__(self, x_t, t):
        sigma = EDM().sigma(t)
        odds = 0.3 * STD**2 / (STD**2 + sigma**2) * x_t.sum(axis=(1, 2, 3)) - 1e3
        return jnp.stack([odds, jnp.zeros_like(odds)], axis=1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_samples_have_the_mean_of_the_gaussian_that_the_classifier_tilts(scale):
    """N(0, s^2) tilted by e^(w a x) is N(w a s^2, s^2), and log p(y | x_t) is w a E[x_0 | x_t] up to a constant."""
    classification = NoisyClassification(model=Certain(), process=EDM(), data=Digits())
    guide = Guide(classification, {"model": {}}, scale, np.zeros(64, np.int32))
    trained = DENOISING.init(jax.random.key(0)).trained
    samples = DENOISING.sample(trained, [""] * 64, seed=0, guide=guide)
    assert samples.mean() == pytest.approx(scale * 0.3 * STD**2, abs=4 * STD / 64)
    assert samples.std() == pytest.approx(STD, rel=0.05)


def test_without_weight_a_classifier_changes_nothing():
    classification = NoisyClassification(model=Certain(), process=EDM(), data=Digits())
    trained, words = DENOISING.init(jax.random.key(0)).trained, [""] * 4
    guide = Guide(classification, {"model": {}}, 0.0, np.zeros(4, np.int32))
    np.testing.assert_allclose(
        DENOISING.sample(trained, words, seed=0, guide=guide), DENOISING.sample(trained, words, seed=0), atol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"process": RectifiedFlow()}, "the classifier knows the noise of RectifiedFlow.*, and this run has EDM"),
        ({"data": TwoDigits()}, "the classifier knows the classes zero, one, and this run has zero, one, two"),
    ],
)
def test_a_classifier_of_other_noise_or_classes_is_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(TASK, **changes).check_guidance(DENOISING.process, DENOISING.space, DENOISING.data)


def test_a_classifier_of_images_leads_no_scaled_latents():
    sentence = "knows images as the data has them, and the space of this run is Latents.scale=0.2"
    with pytest.raises(InputError, match=sentence):
        TASK.check_guidance(DENOISING.process, Latents(scale=0.2), DENOISING.data)


def test_each_sample_is_led_to_its_own_class():
    """Two classes of opposite slopes: means of opposite sides."""
    classification = NoisyClassification(model=Sided(num_classes=10), process=EDM(), data=Digits())
    trained = {"model": {"slope": jnp.float32(0.5)}}
    guide = Guide(classification, trained, 3.0, np.arange(16, dtype=np.int32) % 2)
    samples = DENOISING.sample(DENOISING.init(jax.random.key(0)).trained, [""] * 16, seed=0, guide=guide)
    means = samples.mean(axis=(1, 2, 3))
    assert means[::2].mean() > means[1::2].mean() + 0.1


def test_the_class_that_is_asked_of_the_network_is_where_the_classifier_leads():
    named = replace(DENOISING, condition=Label())
    asked = replace(named.request("sample"), num=2, label="three", classifier="there")
    assert asked.classes(named) == [3, 3]
    assert replace(asked, wanted="four").classes(named) == [4, 4]


@pytest.mark.slow
def test_at_the_door_a_run_of_a_classifier_leads_samples_to_the_class_that_is_wanted(tmp_path):
    """In turn where none is named; what is no such run, or no such class, is refused before weights are read."""
    model = NoisyClassifier(widths=(4,), attention_levels=(), groups=2)
    classification = NoisyClassification(model=model, process=EDM(), data=Digits())
    open_run(tmp_path / "classifier", classification)
    fresh = unbox(jax.jit(classification.init)(jax.random.key(0))).trained
    write_tree(tmp_path / "classifier" / "model.safetensors", fresh)
    asked = replace(DENOISING.request("sample"), num=3, steps=2, classifier=str(tmp_path / "classifier"))
    asked.check(DENOISING)
    parts = DENOISING.init(jax.random.key(0))
    (pictures,) = replace(asked, wanted="seven")(DENOISING, parts)
    assert pictures.captions == ["seven"] * 3
    (pictures,) = asked(DENOISING, parts)
    assert pictures.captions == ["zero", "one", "two"]
    guide = asked.guide(DENOISING, asked.classes(DENOISING))
    sampler = replace(DENOISING.sampler, steps=2)
    np.testing.assert_allclose(
        pictures.images, DENOISING.sample(parts.trained, [""] * 3, seed=0, sampler=sampler, guide=guide), atol=1e-6
    )
    (told,) = replace(DENOISING.request("evaluate"), num=20, steps=2, classifier=asked.classifier)(DENOISING, parts)
    assert told.values["classifier_scale"] == 1.0 and "conditional_accuracy" in told.values
    for wrong, sentence in (
        ({"wanted": "eleven"}, "--wanted is one of zero, .*, nine, not 'eleven'"),
        ({"classifier": None, "wanted": "one"}, "--wanted is where --classifier leads to, and none is given"),
        ({"classifier": "nowhere"}, "nowhere"),
    ):
        with pytest.raises(InputError, match=sentence):
            replace(asked, **wrong).check(DENOISING)
