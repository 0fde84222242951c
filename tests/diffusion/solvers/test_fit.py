"""Laws of what fits what: needs that are met give numbers, and those that are not are told in one sentence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config.kinds import kinds
from genjax.diffusion.learned_variance import LearnedVariance
from genjax.diffusion.mean_velocity import MeanVelocity
from genjax.diffusion.predictions import (
    X0,
    Denoised,
    Eps,
    Preconditioned,
    Prediction,
    Score,
    V,
    Velocity,
)
from genjax.diffusion.process import RectifiedFlow
from genjax.diffusion.processes import EDM, VE, VP, CosineVP, SubVP, Trigonometric
from genjax.diffusion.solvers import (
    SOLVERS,
    Euler,
    EulerMaruyama,
    Heun,
    Jump,
    Solver,
    check_fit,
    check_prediction,
    integrate,
    missing_parts,
    unmet,
)
from genjax.errors import InputError
from genjax.keys import row_keys
from tests.diffusion.solvers import problems

PROCESSES = [RectifiedFlow(), VP(), CosineVP(), SubVP(), VE(), EDM(), Trigonometric()]


def test_every_solver_that_can_be_named_is_listed_but_the_one_that_integrates_nothing():
    assert set(kinds(Solver).values()) == {Jump} | {type(solver) for solver in SOLVERS}


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_of_a_frozen_dataclass_only_options_are_fields(solver):
    names = {field.name for field in dataclasses.fields(solver)}
    assert not names & {"evaluations_per_step", "order", "stochastic", "evaluates_last", "needs"}
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
def test_what_fits_gives_finite_samples(process, stepwise):
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


# -------------------------------------------------------------------------------------------------------- predictions

PREDICTIONS = [
    *(X0(), Eps(), Score(), V(), Velocity(), Preconditioned()),
    *(LearnedVariance(X0()), LearnedVariance(V()), MeanVelocity()),
]


def doubled(prediction, output):
    return jnp.concatenate([output, output], axis=-1) if isinstance(prediction, LearnedVariance) else output


@pytest.mark.parametrize("process", [RectifiedFlow(), VE(), EDM(), SubVP()], ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_what_a_prediction_says_is_finite_exactly_where_it_has_what_it_needs(prediction, process):
    """Its x_0 and its eps, at both ends of the path and between them, of any output."""
    x, output = np.random.default_rng(0).normal(size=(2, 1, 3)).astype(np.float32)
    for t in (0.0, 0.5, 1.0):
        time = jnp.full(1, t)
        seen = prediction.inputs(process, x, time)
        hub = prediction.denoised(process, doubled(prediction, output), x, time)
        assert np.isfinite(seen.x).all() and np.isfinite(seen.t).all()
        assert np.isfinite(hub[:2]).all() == (not missing_parts(prediction, process, np.array([t]))), t


def test_every_prediction_that_can_be_named_says_what_it_needs():
    assert set(kinds(Prediction).values()) == {type(prediction) for prediction in PREDICTIONS}


@pytest.mark.parametrize(
    ("prediction", "solver", "sentence"),
    [
        (
            Eps(),
            Euler(),
            "Eps needs some data in x_t, and RectifiedFlow has none at an end of its times from t = 1 to 0.5: choose"
            " other times, or one of X0, V, Velocity, Preconditioned",
        ),
        (
            X0(),
            Heun(),
            "X0 needs some noise in x_t, and RectifiedFlow has none at an end of its times from t = 1 to 0: choose"
            " other times, or one of V, Velocity, Preconditioned",
        ),
    ],
)
def test_a_prediction_that_is_undefined_on_the_path_is_told_with_those_that_are_not(prediction, solver, sentence):
    with pytest.raises(InputError) as refused:
        times = np.linspace(1, 0, 3)
        check_prediction(prediction, RectifiedFlow(), times, evaluates_last=solver.evaluates_last)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("process", [RectifiedFlow(), VP(), EDM()], ids=lambda process: type(process).__name__)
def test_a_prediction_and_a_solver_that_pass_give_numbers_and_those_refused_do_not(solver, process, stepwise):
    """At the ends of a whole path, where any are undefined; of three predictions, each of a row of its own."""
    if unmet(solver, process):
        return
    times, predictions = np.array([1.0, 0.5, 0.0]), [X0(), Eps(), V()]

    def denoiser(x, t):
        rows = [(p, x[i : i + 1], t[i : i + 1]) for i, p in enumerate(predictions)]
        hubs = [prediction.denoised(process, 0.3 * row, row, time) for prediction, row, time in rows]
        return Denoised(jnp.concatenate([hub.x_0 for hub in hubs]), jnp.concatenate([hub.eps for hub in hubs]))

    x = process.sigma(jnp.float32(1)) * jnp.array([[0.4, -1.0]]).repeat(3, axis=0)
    x = np.asarray(integrate(solver, process, denoiser, x, times, keys=row_keys(0, jnp.arange(3))))
    for prediction, finite in zip(predictions, np.isfinite(x).all(axis=1), strict=True):
        try:
            check_prediction(prediction, process, times, evaluates_last=solver.evaluates_last)
        except InputError:
            assert not finite or prediction == Eps()  # whose x_0 a solver may make no use of
        else:
            assert finite, prediction
