"""Laws of guidance: where it is none, what it goes through, and the exact one of a known mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.grids import ChainTimes, grid_times
from genjax.diffusion.guidance import (
    autoguidance,
    classifier_free_guidance,
    classifier_guidance,
    clipped,
    inpainted,
)
from genjax.diffusion.predictions import Denoised, Velocity
from genjax.diffusion.process import RectifiedFlow, like, noised
from genjax.diffusion.processes import DDPM, EDM, VP
from genjax.diffusion.solvers import DDIM, DPMpp2M, Euler, Heun, integrate
from genjax.errors import InputError


@jax.jit
def denoiser(x_t, t, condition):
    return jnp.tanh(condition["gain"][:, None] * x_t + t[:, None] + condition["more"][0])


@pytest.fixture
def inputs():
    """x_t (3, 4), t (3,), a tree of conditions, and the unconditional one."""
    normal = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    trees = ({"gain": normal[i, :, 0], "more": [normal[i + 1]]} for i in (1, 3))
    return normal[0], np.array([0.1, 0.5, 0.9], np.float32), *trees


@pytest.mark.parametrize(("scale", "which"), [(1.0, "conditional"), (0.0, "unconditional")])
def test_scale_one_is_conditional_and_scale_zero_is_unconditional(inputs, scale, which):
    x_t, t, condition, unconditional = inputs
    guided = classifier_free_guidance(denoiser, unconditional, scale)(x_t, t, condition)
    expected = denoiser(x_t, t, {"conditional": condition, "unconditional": unconditional}[which])
    np.testing.assert_allclose(guided, expected, atol=1e-6)


def test_it_equals_two_separate_calls(inputs):
    x_t, t, condition, unconditional = inputs
    c, u = denoiser(x_t, t, condition), denoiser(x_t, t, unconditional)
    guided = classifier_free_guidance(denoiser, unconditional, 5.0)(x_t, t, condition)
    np.testing.assert_allclose(guided, u + 5 * (c - u), atol=1e-5)


def test_it_is_affine_in_the_scale_which_may_be_traced(inputs):
    x_t, t, condition, unconditional = inputs
    guided = jax.jit(lambda scale: classifier_free_guidance(denoiser, unconditional, scale)(x_t, t, condition))
    np.testing.assert_allclose(guided(3.0), (guided(1.0) + guided(5.0)) / 2, atol=1e-5)


def test_a_condition_equal_to_the_unconditional_is_not_guided(inputs):
    x_t, t, condition, _ = inputs
    guided = classifier_free_guidance(denoiser, condition, 7.0)(x_t, t, condition)
    np.testing.assert_allclose(guided, denoiser(x_t, t, condition), atol=1e-6)


def test_the_network_runs_once_on_twice_the_batch(inputs):
    x_t, t, condition, unconditional = inputs
    batches = []

    def counted(x_t, t, condition):
        batches.append((len(x_t), len(t), *(len(leaf) for leaf in jax.tree.leaves(condition))))
        return denoiser(x_t, t, condition)

    classifier_free_guidance(counted, unconditional, 2.0)(x_t, t, condition)
    assert batches == [(6, 6, 6, 6)]


def test_guiding_the_velocity_is_guiding_the_estimate_of_the_data(inputs, process):
    x_t, t, condition, unconditional = inputs

    def estimate(x_t, t, condition):
        return Velocity().denoised(process, denoiser(x_t, t, condition), x_t, t).x_0

    guided_velocity = classifier_free_guidance(denoiser, unconditional, 4.0)(x_t, t, condition)
    guided_estimate = classifier_free_guidance(estimate, unconditional, 4.0)(x_t, t, condition)
    np.testing.assert_allclose(Velocity().denoised(process, guided_velocity, x_t, t).x_0, guided_estimate, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_outside_its_interval_the_prediction_is_conditional_and_inside_it_is_guided(inputs, scale):
    x_t, t, condition, unconditional = inputs
    guided = classifier_free_guidance(denoiser, unconditional, scale, interval=(0.3, 0.9))(x_t, t, condition)
    always = classifier_free_guidance(denoiser, unconditional, scale)(x_t, t, condition)
    np.testing.assert_array_equal(guided[1:], always[1:])  # at 0.5 and at 0.9, its end
    np.testing.assert_allclose(guided[0], denoiser(x_t, t, condition)[0], atol=1e-6)  # at 0.1


def test_rescaled_predictions_have_the_standard_deviation_of_the_conditional_one(inputs):
    x_t, t, condition, unconditional = inputs
    guided = classifier_free_guidance(denoiser, unconditional, 7.0, rescale=1.0)(x_t, t, condition)
    np.testing.assert_allclose(guided.std(axis=1), denoiser(x_t, t, condition).std(axis=1), rtol=1e-5)


def test_the_deviation_of_a_rescaled_image_is_that_of_all_of_it(inputs):
    """Over height, width and channels together (Lin et al. 2023, section 3.4), and not of each pixel or channel."""
    _, t, condition, _ = inputs
    x, c, u = np.random.default_rng(1).normal(size=(3, 3, 5, 4, 2)).astype(np.float32)
    scaled = np.arange(1, 9).reshape(4, 2)

    def network(x_t, t, condition):
        return jnp.concatenate([c * scaled, u])

    guided = classifier_free_guidance(network, condition, 7.0, rescale=1.0)(x, t, condition)
    moved = u + 7 * (c * scaled - u)
    ratio = [np.std(c[i] * scaled) / np.std(moved[i]) for i in range(3)]
    np.testing.assert_allclose(guided, moved * np.reshape(ratio, (3, 1, 1, 1)), rtol=1e-5, atol=1e-5)


def test_a_rescaled_prediction_of_one_value_is_left_as_it_is(inputs):
    x_t, t, condition, unconditional = inputs
    for value in (0.0, 0.5):
        guided = classifier_free_guidance(
            lambda x, t, condition, value=value: jnp.full_like(x, value), unconditional, 7.0, rescale=0.7
        )
        np.testing.assert_allclose(guided(x_t, t, condition), value, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"rescale": 0.7}, {"interval": (0.3, 0.9)}], ids=str)
def test_the_channels_of_a_learned_variance_are_the_conditional_ones_and_the_others_are_guided_as_if_alone(
    inputs, options
):
    """As in the code of ADM and DiT."""
    x_t, t, condition, unconditional = inputs

    def learned(x_t, t, condition):
        mean = denoiser(x_t, t, condition)
        return jnp.concatenate([mean, jnp.sin(3 * mean)], axis=-1)

    both = classifier_free_guidance(learned, unconditional, 5.0, guided_channels=4, **options)(x_t, t, condition)
    alone = classifier_free_guidance(denoiser, unconditional, 5.0, **options)(x_t, t, condition)
    np.testing.assert_allclose(both[:, :4], alone, rtol=1e-6)
    np.testing.assert_allclose(both[:, 4:], learned(x_t, t, condition)[:, 4:], rtol=1e-6)


def test_a_partial_rescale_mixes_and_none_changes_nothing(inputs):
    x_t, t, condition, unconditional = inputs
    none, some, all_of_it = (
        classifier_free_guidance(denoiser, unconditional, 7.0, rescale=phi)(x_t, t, condition)
        for phi in (0.0, 0.7, 1.0)
    )
    np.testing.assert_array_equal(none, classifier_free_guidance(denoiser, unconditional, 7.0)(x_t, t, condition))
    np.testing.assert_allclose(some, 0.7 * all_of_it + 0.3 * none, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"interval": (0.7, 0.2)}, "interval of guidance is 0 <= low <= high <= 1, not 0.7 to 0.2"),
        ({"interval": (0.0, 1.2)}, "interval of guidance"),
        ({"guided_channels": 0}, "number of guided channels is at least 1, not 0"),
        ({"rescale": 1.5}, "rescale of guidance lies in .0, 1., not at 1.5"),
    ],
)
def test_senseless_guidance_is_refused(inputs, options, sentence):
    with pytest.raises(InputError, match=sentence):
        classifier_free_guidance(denoiser, inputs[3], 2.0, **options)


def test_autoguidance_goes_from_the_worse_prediction_through_the_better_one(inputs):
    x_t, t, condition, other = inputs

    def worse(x_t, t, condition):
        return denoiser(x_t, t, other)

    good, bad = denoiser(x_t, t, condition), worse(x_t, t, condition)
    for scale, expected in ((0.0, bad), (1.0, good), (2.5, good + 1.5 * (good - bad))):
        np.testing.assert_allclose(autoguidance(denoiser, worse, scale)(x_t, t, condition), expected, atol=1e-5)


# ------------------------------------------------------------------------------------- classifiers of a known mixture

MEANS, WEIGHTS, STD = np.array([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]]), np.array([0.2, 0.3, 0.5]), 0.3


def log_joint(process, x, t):
    """log p(y) p(x_t | y) up to a constant, (B, 3), of a mixture of Gaussians."""
    alpha, sigma = process.alpha(t)[:, None, None], process.sigma(t)[:, None, None]
    variance = alpha**2 * STD**2 + sigma**2
    squares = ((x[:, None] - alpha * MEANS) ** 2 / variance + jnp.log(variance)).sum(axis=2)
    return jnp.log(WEIGHTS) - squares / 2


def denoised(process, classes):
    """The best denoiser of the mixture of some of the classes, by its score."""

    def denoiser(x, t):
        score = jax.grad(lambda x: jax.nn.logsumexp(log_joint(process, x, t)[:, classes], axis=1).sum())(x)
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        return Denoised((x + sigma**2 * score) / alpha, -sigma * score)

    return denoiser


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(4, 2)), np.array([0.1, 0.4, 0.7, 0.95])


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [[1], [0, 2]])
def test_the_true_classifier_turns_the_denoiser_of_all_into_that_of_its_classes(process, points, wanted, x64):
    def log_probability(x, t):
        return jax.nn.logsumexp(jax.nn.log_softmax(log_joint(process, x, t))[:, np.array(wanted)], axis=1)

    guided = classifier_guidance(process, denoised(process, np.arange(3)), log_probability)(*points)
    expected = denoised(process, np.array(wanted))(*points)
    np.testing.assert_allclose(guided.x_0, expected.x_0, atol=1e-10)
    np.testing.assert_allclose(guided.eps, expected.eps, atol=1e-10)


def test_a_scaled_classifier_has_the_score_of_the_tilted_density(process, points, x64):
    """p(x_t) p(y | x_t)^w; and its x_0 and eps make up x_t."""

    def log_probability(x, t):
        return jax.nn.log_softmax(log_joint(process, x, t))[:, 1]

    def log_tilted(x, t):
        return jax.nn.logsumexp(log_joint(process, x, t), axis=1) + 2.5 * log_probability(x, t)

    x, t = points
    guided = classifier_guidance(process, denoised(process, np.arange(3)), log_probability, 2.5)(x, t)
    score = jax.grad(lambda x: log_tilted(x, t).sum())(x)
    np.testing.assert_allclose(guided.eps, -process.sigma(t)[:, None] * score, atol=1e-10)
    np.testing.assert_allclose(noised(process, guided.x_0, guided.eps, t), x, atol=1e-10)


def test_a_classifier_without_weight_is_none_and_pure_noise_tells_it_nothing(points):
    process, x = RectifiedFlow(), points[0].astype(np.float32)
    plain = Denoised(jnp.zeros((4, 2)), jnp.asarray(x))
    t = jnp.array([0.5, 0.5, 1.0, 1.0])

    def guided(scale):
        return classifier_guidance(process, lambda x, t: plain, lambda x, t: -(x**2).sum(axis=1), scale)(x, t)

    np.testing.assert_array_equal(guided(0.0).eps, x)
    np.testing.assert_array_equal(guided(1.0).x_0[2:], 0)
    assert (guided(1.0).x_0[:2] != 0).all()


@pytest.mark.parametrize(
    "process", [RectifiedFlow(), DDPM("cosine"), EDM()], ids=lambda process: type(process).__name__
)
def test_a_clipped_estimate_is_in_range_and_one_of_the_pair_that_x_t_is_made_of(process, inputs):
    x_t, t, *_ = inputs
    alpha, sigma = (np.asarray(part(t))[:, None] for part in (process.alpha, process.sigma))
    x_0 = np.float32([[-3, -1, 0.5, 2]] * 3)
    said = clipped(process, lambda x, t: Denoised(x_0, (x - alpha * x_0) / sigma, x), 1.0)(x_t, t)
    np.testing.assert_array_equal(said.x_0, np.clip(x_0, -1, 1))
    np.testing.assert_allclose(alpha * said.x_0 + sigma * said.eps, x_t, rtol=1e-5, atol=1e-5 * sigma.max())
    np.testing.assert_array_equal(said.eps[:, 1:3], ((x_t - alpha * x_0) / sigma)[:, 1:3])  # what was in range
    np.testing.assert_array_equal(said.variance_fraction, x_t)


def test_an_error_that_alpha_blows_up_is_no_longer_than_the_data():
    """DDIM down the cosine table by a network whose noise is a hundredth too small and never above 1, of data at 0."""
    process, times = DDPM("cosine"), grid_times(ChainTimes(), DDPM("cosine"), 20)

    def wrong(x, t):
        alpha, sigma = (like(part(t), x) for part in (process.alpha, process.sigma))
        eps = 0.99 * jnp.clip(x / sigma, -1, 1)
        return Denoised((x - sigma * eps) / alpha, eps)

    x = jnp.ones((1, 1))
    ends = [integrate(DDIM(), process, d, x, times) for d in (wrong, clipped(process, wrong, 1.0))]
    assert abs(ends[0]) > 10 and abs(ends[1]) <= 1


def test_where_there_is_no_noise_the_estimate_is_clipped_and_the_noise_stays():
    x = jnp.array([[3.0, 0.5]])
    said = clipped(RectifiedFlow(), lambda x, t: Denoised(x, 7 * x), 1.0)(x, jnp.zeros(1))
    np.testing.assert_array_equal(said.x_0, [[1.0, 0.5]])
    np.testing.assert_array_equal(said.eps, 7 * x)


@pytest.mark.parametrize(
    ("solver", "process"),
    [
        (Euler(), RectifiedFlow()),
        (Heun(), RectifiedFlow()),
        (DPMpp2M(), RectifiedFlow()),
        (DDIM(), VP()),
        (DPMpp2M(), VP()),
        (Heun(), EDM()),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_is_known_stays_on_its_way_to_the_data_and_the_rest_goes_its_own(solver, process):
    """By a denoiser that looks at each number alone, so that neither part can see the other."""
    x_0, eps = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    kept = np.float32([[1], [1], [0]])
    times = np.linspace(1.0, 0.0, 8, dtype=np.float32)
    times = times[:-1] if solver.evaluates_last else times

    def denoiser(x, t):
        estimate = 0.3 * jnp.tanh(x)
        alpha, sigma = (like(part(t), x) for part in (process.alpha, process.sigma))
        return Denoised(estimate, (x - alpha * estimate) / sigma)

    x = noised(process, x_0, eps, times[0])
    blended = integrate(solver, process, inpainted(denoiser, x_0, eps, kept), x, times, trajectory=True)
    alone = integrate(solver, process, denoiser, x, times)
    for t, state in zip(times, blended, strict=True):
        np.testing.assert_allclose(
            state[:2], noised(process, x_0, eps, t)[:2], rtol=0, atol=1e-4 * max(1, process.sigma(t))
        )
    np.testing.assert_allclose(blended[-1][2], alone[2], rtol=1e-5, atol=1e-5)
    assert np.abs(alone[:2] - x_0[:2]).max() > 0.1
