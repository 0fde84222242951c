"""Laws of what fits what: needs that are met give numbers, and those that are not are told in one sentence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config.kinds import kinds
from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.processes import EDM, VE, VP, CosineVP, SubVP, Trigonometric
from genjax.diffusion.solvers import SOLVERS, Euler, EulerMaruyama, Heun, Solver, check_fit, integrate, unmet
from genjax.errors import InputError
from genjax.keys import row_keys
from tests.diffusion.solvers import problems

PROCESSES = [RectifiedFlow(), VP(), CosineVP(), SubVP(), VE(), EDM(), Trigonometric()]


def test_every_solver_that_can_be_named_is_listed():
    assert set(kinds(Solver).values()) == {type(solver) for solver in SOLVERS}


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_of_a_frozen_dataclass_only_options_are_fields(solver):
    names = {field.name for field in dataclasses.fields(solver)}
    assert not names & {"evaluations_per_step", "order", "stochastic", "needs"}
    assert hash(solver) == hash(dataclasses.replace(solver))


def test_what_fits_a_whole_path():
    """Which is the table of the page: a solver in sigma / alpha needs data in the noise, one in t a velocity."""
    misfits = {
        type(process).__name__: {type(solver).__name__ for solver in SOLVERS if unmet(solver, process)}
        for process in PROCESSES
    }
    no_data = {"EDMHeun", "ReverseDiffusion", "EulerMaruyama"}
    assert misfits == {
        "RectifiedFlow": no_data,
        "VP": {"Heun", "RK4"},
        "CosineVP": {"Heun", "RK4"},
        "SubVP": set(),
        "VE": set(),
        "EDM": set(),
        "Trigonometric": no_data,
    }


@pytest.mark.parametrize("process", [VP(), VE(), EDM()], ids=lambda process: type(process).__name__)
def test_what_fits_gives_finite_samples(process):
    z = np.linspace(-2, 2, 5, dtype=np.float32)
    for solver in SOLVERS:
        if not unmet(solver, process):
            x = problems.solution(process, z, jnp.float32(1))
            keys = row_keys(0, jnp.arange(5))
            denoiser = problems.posterior_mean(process)
            x = integrate(solver, process, denoiser, x, np.array([1.0, 0.5, 0.0]), keys=keys)
            assert np.isfinite(x).all(), solver


def test_a_misfit_is_told_with_what_fits():
    with pytest.raises(InputError) as refused:
        check_fit(Heun(), VP(), np.linspace(1, 0, 3))
    assert str(refused.value) == (
        "Heun needs a finite velocity at the last time, and VP has none from t = 1 to 0: choose other times, or one of"
        " Euler, DDIM, DPMpp1, DPMpp2M, DPMpp3M, UniPC2, EDMHeun, Ancestral, ReverseDiffusion, EulerMaruyama,"
        " DPMppSDE2M"
    )


def test_other_times_make_it_fit():
    check_fit(Heun(), VP(), np.linspace(1, 1e-3, 3))
    check_fit(EulerMaruyama(), RectifiedFlow(), np.linspace(1 - 1e-3, 0, 3))


def test_the_question_may_be_asked_while_a_program_is_traced():
    jax.jit(lambda x: check_fit(Euler(), RectifiedFlow(), np.linspace(1, 0, 3)) or x)(1.0)
