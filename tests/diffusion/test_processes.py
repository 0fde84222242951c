"""Laws of the kinds of processes: closed forms of their papers, tables of diffusers, and what they refuse."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config.kinds import kinds
from genjax.diffusion.process import Process, coefficients, posterior, sde, transition
from genjax.diffusion.processes import DDPM, EDM, VE, VP, CosineVP, SubVP, Trigonometric
from genjax.errors import InputError

T = np.array([0.0, 1e-3, 0.1, 0.35, 0.5, 0.8, 1.0])
SCHEDULES = {"linear": DDPM(), "scaled_linear": DDPM("scaled_linear", 0.00085, 0.012), "cosine": DDPM("cosine")}

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def test_a_config_takes_every_process_by_name():
    names = {"RectifiedFlow", "VP", "CosineVP", "SubVP", "VE", "EDM", "Trigonometric", "DDPM"}
    assert names <= kinds(Process).keys()


# ----------------------------------------------------------------- Song et al. 2021, appendix B, equations 29 and 33


def integral_of_beta(t, beta_min=0.1, beta_max=20.0):
    return t * beta_min + t**2 / 2 * (beta_max - beta_min)


def test_vp_is_that_of_song(x64):
    kept = np.exp(-integral_of_beta(T) / 2)
    c, (f, g2) = coefficients(VP(), T), sde(VP(), T)
    np.testing.assert_allclose(c.alpha, kept, rtol=1e-12)
    np.testing.assert_allclose(c.sigma**2, 1 - kept**2, atol=1e-14)
    beta = 0.1 + 19.9 * T
    np.testing.assert_allclose(f, -beta / 2, rtol=1e-10)
    np.testing.assert_allclose(g2, beta, rtol=1e-10)


def test_sub_vp_is_that_of_song(x64):
    lost = -np.expm1(-integral_of_beta(T))
    c, (f, g2) = coefficients(SubVP(), T), sde(SubVP(), T)
    np.testing.assert_allclose(c.alpha**2, 1 - lost, rtol=1e-12)
    np.testing.assert_allclose(c.sigma, lost, rtol=1e-12, atol=1e-100)
    beta = 0.1 + 19.9 * T
    np.testing.assert_allclose(f, -beta / 2, rtol=1e-10)
    np.testing.assert_allclose(g2, beta * -np.expm1(-2 * integral_of_beta(T)), rtol=1e-10, atol=1e-100)


def test_ve_is_that_of_song(x64):
    c, (f, g2) = coefficients(VE(), T), sde(VE(), T)
    np.testing.assert_allclose(c.sigma, 0.01 * 5000**T, rtol=1e-12)
    np.testing.assert_array_equal(f, 0)
    np.testing.assert_allclose(g2, (0.01 * 5000**T) ** 2 * 2 * np.log(5000), rtol=1e-12)


@pytest.mark.parametrize(("process", "at_0"), [(VP(), 0.1), (SubVP(), 0), (DDPM(), 1000 * -math.log1p(-1e-4))], ids=str)
def test_the_diffusion_at_time_0_is_its_limit_in_single_precision(process, at_0):
    np.testing.assert_allclose(sde(process, jnp.zeros(())).squared_diffusion, at_0, rtol=1e-6, atol=1e-12)


# --------------------------------------------------------------------------------------------------------- the others


def test_edm_has_the_noise_of_its_time_up_to_a_factor():
    """So that dx/dt = sigma_max dx/dsigma, and steps of times sigma_i / sigma_max are those of Karras et al."""
    c = coefficients(EDM(), jnp.asarray(T, jnp.float32))
    np.testing.assert_allclose(c.sigma, 80 * T, rtol=1e-6, atol=1e-16)
    np.testing.assert_array_equal([c.alpha, c.d_alpha, c.d_sigma], np.outer([1, 0, 80], np.ones(7)))


def test_trigonometric_is_a_quarter_of_the_unit_circle():
    c = coefficients(Trigonometric(), jnp.asarray(T, jnp.float32))
    np.testing.assert_allclose(c.alpha, np.cos(np.pi / 2 * T), atol=1e-6)
    np.testing.assert_allclose(c.sigma, np.sin(np.pi / 2 * T), atol=1e-6)
    assert Trigonometric().alpha(jnp.ones(())) == 0


@pytest.mark.parametrize("process", [VP(), CosineVP(), Trigonometric(), *SCHEDULES.values()], ids=str)
def test_what_preserves_variance_does(process):
    t = jnp.linspace(0, 1, 101)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1, atol=1e-6)


@pytest.mark.slow
def test_cosine_vp_is_that_of_nichol_and_dhariwal_until_its_beta_is_cut(x64):
    t = np.linspace(0, 0.997, 12)
    squared = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(CosineVP().alpha(t) ** 2, squared, rtol=1e-11)
    beta = np.pi / 1.008 * np.tan((t + 0.008) / 1.008 * np.pi / 2)
    np.testing.assert_allclose(sde(CosineVP(), t).squared_diffusion, beta, rtol=1e-9)
    np.testing.assert_allclose(sde(CosineVP(), jnp.array([0.9985, 1.0])).squared_diffusion, 999)


def test_the_beta_of_cosine_vp_rises_without_a_jump(x64):
    beta = sde(CosineVP(), jnp.linspace(0.9, 1, 2001)).squared_diffusion
    assert (np.diff(beta) > -1e-9).all() and np.diff(beta).max() < 0.03 * 999


# ------------------------------------------------------------------------------------------------------ discrete tables


@pytest.fixture(scope="module")
def golden():
    """Tables of diffusers' DDPMScheduler; see tests/golden/make_ddpm_tables.py."""
    with np.load(Path(__file__).parents[1] / "golden" / "ddpm_tables.npz") as file:
        return dict(file)


@every_schedule
def test_the_tables_are_those_of_diffusers(golden, schedule, x64):
    t = np.arange(1, 1001) / 1000
    # Theirs are products in float32.
    np.testing.assert_allclose(SCHEDULES[schedule].alpha(t) ** 2, golden[f"{schedule}.alphas_cumprod"], rtol=1e-4)


@every_schedule
def test_the_posterior_variances_are_those_of_diffusers(golden, schedule, x64):
    s, t = jnp.arange(1, 1000) / 1000, jnp.arange(2, 1001) / 1000
    variance = posterior(SCHEDULES[schedule], s, t).variance
    np.testing.assert_allclose(variance, golden[f"{schedule}.variance"][1:], rtol=4e-3)


@every_schedule
def test_every_step_of_the_chain_is_a_transition_of_its_beta(schedule, x64):
    process, n = SCHEDULES[schedule], np.arange(1000)
    scale, variance = transition(process, jnp.asarray(n / 1000), jnp.asarray((n + 1) / 1000))
    np.testing.assert_allclose(variance, process.betas(), rtol=1e-8)
    np.testing.assert_allclose(scale**2, 1 - process.betas(), rtol=1e-8)


@every_schedule
def test_between_the_steps_beta_is_continuous_and_positive(schedule, x64):
    """From both sides of every step, where it is the harmonic mean of the two slopes."""
    process, n = SCHEDULES[schedule], np.arange(1, 1000)
    left, right = (sde(process, (n + offset) / 1000).squared_diffusion for offset in (-1e-9, 1e-9))
    rates = -1000 * np.log1p(-process.betas())
    np.testing.assert_allclose(left, right, rtol=1e-6)
    np.testing.assert_allclose(right, 2 / (1 / rates[1:] + 1 / rates[:-1]), rtol=1e-6)
    assert (sde(process, (n + 0.37) / 1000).squared_diffusion > 0).all()


def test_a_linear_chain_of_many_steps_is_the_vp_sde():
    chain, t = DDPM(beta_start=1e-6, beta_end=2e-4, steps=100_000), jnp.linspace(0, 1, 9)
    np.testing.assert_allclose(chain.alpha(t), VP(beta_min=0.1, beta_max=20.0).alpha(t), rtol=2e-3)


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_respaced_times_are_the_timesteps_of_diffusers(golden, spacing, steps):
    times = DDPM().times(steps, spacing)
    np.testing.assert_allclose(times[:-1] * 1000 - 1, golden[f"{spacing}_{steps}"], atol=1e-9)
    assert times[-1] == 0 and times.dtype == np.float64


def test_a_respaced_chain_has_the_betas_of_nichol_and_dhariwal(x64):
    times = jnp.asarray(DDPM().times(50)[::-1])
    kept = np.concatenate([[1], np.cumprod(1 - DDPM().betas())])[np.arange(0, 1001, 20)]
    np.testing.assert_allclose(transition(DDPM(), times[:-1], times[1:]).variance, 1 - kept[1:] / kept[:-1], rtol=1e-9)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: VP(beta_min=0.0), "beta_min and beta_max of VP are positive"),
        (lambda: SubVP(beta_min=3.0, beta_max=2.0), "beta_min and beta_max of SubVP are positive, the second no less"),
        (lambda: VP(beta_max=math.nan), "not 0.1 and nan"),
        (lambda: CosineVP(offset=-1.0), "offset of CosineVP is 0 or more, not -1.0"),
        (lambda: CosineVP(beta_max=0.01), "beta_max of CosineVP is above beta(0) = 0.03"),
        (lambda: VE(sigma_min=2.0, sigma_max=1.0), "sigma_min and sigma_max of VE are positive, the second the larger"),
        (lambda: EDM(sigma_max=-1.0), "sigma_max of EDM is positive, not -1.0"),
        (lambda: DDPM(beta_end=1.0), "beta_start and beta_end of DDPM lie in (0, 1)"),
        (lambda: DDPM(steps=0), "steps of DDPM is at least 1, not 0"),
        (lambda: DDPM().times(0), "takes 1 to 1000 of them, not 0"),
        (lambda: DDPM().times(1001), "takes 1 to 1000 of them, not 1001"),
    ],
)
def test_what_is_no_process_is_refused(make, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        make()


def test_an_unknown_word_is_refused(unchecked):
    with pytest.raises(InputError, match="schedule of DDPM is linear, scaled_linear or cosine, not 'quadratic'"):
        DDPM("quadratic")
    with pytest.raises(InputError, match="leading, linspace or trailing, not 'even'"):
        DDPM().times(10, "even")


def test_a_process_is_traced_like_any_function():
    for process in (VP(), CosineVP(), DDPM()):
        slopes = jax.jit(jax.vmap(jax.grad(process.alpha)))(jnp.array([0.0, 0.5, 1.0]))
        assert np.isfinite(slopes).all()
