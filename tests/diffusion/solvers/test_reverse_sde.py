"""Laws of the solvers of the reverse SDE: mean and covariance, correctors, and the steps of diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion.predictions import Denoised
from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.processes import VE, VP, SubVP
from genjax.diffusion.solvers import DDIM, Ancestral, EulerMaruyama, Langevin, ReverseDiffusion, integrate
from genjax.diffusion.solvers.integrate import Step
from genjax.errors import InputError
from genjax.keys import row_keys
from tests.diffusion.solvers import problems

SOLVERS = [Ancestral(), Ancestral("large"), ReverseDiffusion(), EulerMaruyama()]
COUNT = 5_000


@pytest.mark.parametrize(
    "solver", SOLVERS, ids=lambda solver: f"{type(solver).__name__}{getattr(solver, 'variance', '')}"
)
@pytest.mark.parametrize(
    "process",
    [RectifiedFlow(), VP(), pytest.param(SubVP(), marks=pytest.mark.slow), VE()],
    ids=lambda p: type(p).__name__,
)
def test_the_error_of_mean_and_variance_falls_with_the_declared_power_of_the_step(solver, process, x64):
    assert problems.observed_order(solver, process) == pytest.approx(1, abs=0.15)


def samples(solver, process, times):
    z = jax.random.normal(jax.random.key(0), (COUNT,))
    start = problems.solution(process, z, times[0])
    denoiser, keys = problems.posterior_mean(process), row_keys(1, jnp.arange(COUNT))
    return jax.jit(lambda x: integrate(solver, process, denoiser, x, times, keys=keys))(start)


@pytest.mark.parametrize("solver", [Ancestral(), ReverseDiffusion(), EulerMaruyama()], ids=lambda s: type(s).__name__)
def test_samples_have_the_mean_and_variance_of_the_data(solver):
    x = samples(solver, VP(), np.linspace(1, 1e-3, 251))
    np.testing.assert_allclose(x.mean(), problems.MEAN, atol=4 * problems.STD / np.sqrt(COUNT) + 3e-3)
    np.testing.assert_allclose(x.std(), problems.STD, rtol=4 / np.sqrt(2 * COUNT) + 1e-2)


def test_ancestral_sampling_with_the_small_variance_is_ddim_with_all_of_the_noise(process):
    z, times = np.linspace(-2, 2, 5, dtype=np.float32), np.array([1.0, 0.6, 0.3, 0.0])
    noise = np.random.default_rng(0).normal(size=(3, 1, 5))
    first, second = (
        integrate(problems.WithoutKeys(solver, noise), process, problems.posterior_mean(process), z, times)
        for solver in (Ancestral(), DDIM(eta=1.0))
    )
    np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.parametrize(("fraction", "variance"), [(0.0, "small"), (1.0, "large")])
def test_a_learned_variance_lies_between_the_two(fraction, variance):
    z, times, process = np.linspace(-2, 2, 5, dtype=np.float32), np.array([1.0, 0.6, 0.3]), VP()
    plain = problems.posterior_mean(process)

    def denoiser(x, t):
        return plain(x, t)._replace(variance_fraction=jnp.full_like(x, fraction))

    learned, fixed = (
        integrate(Ancestral(kind), process, denoiser, z, times, keys=row_keys(0, jnp.arange(5)))
        for kind in ("learned", variance)
    )
    np.testing.assert_allclose(learned, fixed, atol=1e-5)
    with pytest.raises(InputError, match="this network has learned none"):
        integrate(Ancestral("learned"), process, plain, z, times, keys=row_keys(0, jnp.arange(5)))


@pytest.mark.parametrize("size", ["norms", "sigma"])
def test_many_small_corrections_turn_any_sample_into_one_of_the_density_of_its_time(size):
    """Of 256 numbers each; a step of this snr leaves the variance a hundredth or two too large."""
    process, t = VP(), jnp.float32(0.3)
    step = Step(jnp.int32(0), jnp.int32(1), t, t, row_keys(0, jnp.arange(40)))
    corrector = Langevin(steps=150, snr=0.1, size=size)
    x = jax.jit(lambda x: corrector(process, problems.posterior_mean(process), x, step))(jnp.zeros((40, 256)))
    alpha, sigma = process.alpha(t), process.sigma(t)
    std = np.sqrt(alpha**2 * problems.STD**2 + sigma**2)
    np.testing.assert_allclose(x.mean(), alpha * problems.MEAN, atol=0.03)
    np.testing.assert_allclose(x.std(), std, rtol=0.03)


def test_corrections_cost_evaluations_and_the_order():
    corrected = ReverseDiffusion(corrector=Langevin(steps=2))
    assert (corrected.evaluations_per_step, corrected.order) == (3, 0)
    assert (ReverseDiffusion().evaluations_per_step, ReverseDiffusion().order) == (1, 1)


@pytest.mark.parametrize(("options", "sentence"), [({"steps": -1}, "at least 0, not -1"), ({"snr": 0.0}, "positive")])
def test_senseless_correctors_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Langevin(**options)


def test_trajectories_equal_those_of_diffusers(golden, x64):
    runs = problems.runs_of(golden, "Ancestral", "ReverseDiffusion", "EulerMaruyama")
    assert runs == ["ddpm_small", "ddpm_large", "reverse_diffusion_langevin"]
    for run in runs:
        assert problems.distance_from_golden(golden, run) < 2e-6


@pytest.mark.parametrize("size", ["norms", "sigma"])
def test_a_correction_without_a_score_is_a_step_of_noise_of_the_size_of_sigma(size):
    step = Step(jnp.int32(0), jnp.int32(1), jnp.float32(0.5), jnp.float32(0.5), row_keys(0, jnp.arange(3)))
    nothing = Denoised(jnp.zeros((3, 4)), jnp.zeros((3, 4)))
    x = Langevin(snr=0.1, size=size)(VP(), lambda x, t: nothing, jnp.zeros((3, 4)), step)
    np.testing.assert_allclose(x, 2 * 0.1 * VP().sigma(jnp.float32(0.5)) * step.noise(x, 1), rtol=1e-5)


@pytest.mark.parametrize("size", ["norms", "sigma"])
def test_a_step_of_the_corrector_is_that_of_song_with_the_alpha_of_the_forward_step(size):
    """Song et al. 2021, algorithm 5: e = 2 a (r |n| / |score|)^2 with a = 1 - beta, (alpha_t / alpha_s)^2."""
    s, t, snr = jnp.float32(0.4), jnp.float32(0.6), 0.2
    step = Step(jnp.int32(0), jnp.int32(2), t, s, row_keys(0, jnp.arange(3)))
    x, eps = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    corrected = Langevin(snr=snr, size=size)(VP(), lambda x, t: Denoised(eps, eps), jnp.asarray(x), step)
    noise, score = step.noise(x, 1), -eps / VP().sigma(t)
    norms = np.linalg.norm(noise, axis=1, keepdims=True) / np.linalg.norm(score, axis=1, keepdims=True)
    e = 2 * (VP().alpha(t) / VP().alpha(s)) ** 2 * (snr * (norms if size == "norms" else VP().sigma(t))) ** 2
    np.testing.assert_allclose(corrected, x + e * score + np.sqrt(2 * e) * noise, rtol=1e-5, atol=1e-6)
