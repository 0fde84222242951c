"""Laws of grids: they fall from noise to data, evenly in what they say, and equal published tables."""

import math
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config.kinds import kinds
from genjax.diffusion.grids import (
    ChainTimes,
    GivenTimes,
    Grid,
    KarrasSigmas,
    SD3Times,
    ShiftedTimes,
    UniformLogSNR,
    UniformTimes,
    grid_times,
)
from genjax.diffusion.process import RectifiedFlow, log_snr
from genjax.diffusion.processes import DDPM, EDM, VE, VP, CosineVP, SubVP
from genjax.errors import InputError

ALL = [
    UniformTimes(),
    UniformTimes(first=0.999, last=1e-3),
    ShiftedTimes(),
    SD3Times(),
    SD3Times(corrected=True),
    KarrasSigmas(s_max=80.0),
    UniformLogSNR(s_max=10.0),
]
every_grid = pytest.mark.parametrize("grid", ALL, ids=str)


@every_grid
@pytest.mark.parametrize("steps", [1, 2, 28])
def test_times_fall_from_noise_to_data(grid, steps):
    for process in (RectifiedFlow(), EDM()):
        times = grid.grid(process, steps)
        assert times.shape == (steps + 1,) and times.dtype == np.float64
        assert times[0] <= 1 and times[-1] == getattr(grid, "last", 0) and (np.diff(times) < 0).all()


@every_grid
def test_checked_times_are_those_of_the_grid(grid):
    np.testing.assert_array_equal(grid_times(grid, RectifiedFlow(), 28), grid.grid(RectifiedFlow(), 28))


@dataclass(frozen=True)
class Broken:
    """A table that nobody looked at."""

    times: tuple[float, ...]

    def grid(self, process, steps):
        return np.asarray(self.times)


@pytest.mark.parametrize(
    ("grid", "steps"),
    [
        (UniformLogSNR(s_max=1e9), 28),  # whose first times are 1 in float32
        (GivenTimes((1.0, 1 - 1e-9, 0.0)), 2),
        (Broken((1.0, math.nan, 0.0)), 2),
        (Broken((0.0, 0.5, 1.0)), 2),
        (Broken((1.2, 0.5, 0.0)), 2),
        (Broken((1.0, 0.0)), 2),
    ],
    ids=str,
)
def test_times_that_do_not_fall_in_single_precision_are_refused_by_the_name_of_their_grid(grid, steps):
    with pytest.raises(InputError, match=f"the times of {type(grid).__name__}.* do not fall strictly in .0, 1. as"):
        grid_times(grid, RectifiedFlow(), steps)


@every_grid
def test_a_number_of_steps_below_one_is_refused(grid):
    with pytest.raises(InputError, match="steps of a grid is at least 1, not 0"):
        grid.grid(RectifiedFlow(), 0)


def test_a_grid_can_be_named():
    assert set(kinds(Grid).values()) == {
        ChainTimes, GivenTimes, KarrasSigmas, SD3Times, ShiftedTimes, UniformLogSNR, UniformTimes
    }  # fmt: skip


def test_edms_grid_is_that_of_the_paper(x64):
    """Karras et al. 2022, equation 5, with its defaults; the noise of EDM is 80 t."""
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(KarrasSigmas().grid(EDM(), 18), np.append(sigma, 0) / 80, rtol=1e-10)


@pytest.mark.parametrize("process", [RectifiedFlow(), VP(), CosineVP(), SubVP(), VE()], ids=lambda p: type(p).__name__)
def test_steps_are_even_in_log_snr_or_in_a_power_of_the_noise(process, x64):
    for grid, scale in ((UniformLogSNR(s_max=10.0), np.log), (KarrasSigmas(s_max=10.0), lambda s: s ** (1 / 7))):
        times = grid.grid(process, 10)
        inner = times if process == VE() else times[:-1]
        gaps = np.diff(scale(np.exp(-log_snr(process, jnp.asarray(inner)))))
        np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-6)


@pytest.mark.parametrize("process", [VP(), VE(), EDM(), CosineVP()], ids=lambda process: type(process).__name__)
def test_where_noise_has_some_data_the_whole_path_is_the_default(process):
    assert KarrasSigmas().grid(process, 10)[0] == 1 and UniformLogSNR().grid(process, 10)[0] == 1


def test_data_with_noise_is_the_end_of_its_own_path():
    """Time 0 of VE has a noise of 0.01, after which there is nothing."""
    last = KarrasSigmas().grid(VE(), 10)[-2:]
    assert last[1] == 0 and last[0] > 0.05


def test_pure_noise_is_no_noise_level():
    with pytest.raises(
        InputError, match="KarrasSigmas needs s_max with RectifiedFlow, which ends in nothing but noise"
    ):
        KarrasSigmas().grid(RectifiedFlow(), 10)


def test_noise_levels_that_the_process_has_not_are_refused():
    with pytest.raises(InputError, match="0 < s_min < s_max <= 80, that of EDM at t = 1, not 0.002 and 90"):
        KarrasSigmas(s_max=90.0).grid(EDM(), 10)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: UniformTimes(first=0.1, last=0.2), "0 <= last < first <= 1, not 0.2 and 0.1"),
        (lambda: ShiftedTimes(0.0), "shift of a grid of times is positive and finite, not 0.0"),
        (lambda: SD3Times(-1.0), "shift of a grid of times is positive and finite, not -1.0"),
        (lambda: KarrasSigmas(rho=0.0), "rho of KarrasSigmas is positive and finite, not 0.0"),
        (lambda: KarrasSigmas(rho=math.inf), "rho of KarrasSigmas is positive and finite, not inf"),
        (lambda: KarrasSigmas(s_max=0.0), "s_max of KarrasSigmas is positive and finite, not 0.0"),
        (lambda: UniformLogSNR(s_max=0.0), "s_max of UniformLogSNR is positive and finite, not 0.0"),
        (lambda: UniformLogSNR(s_max=math.nan), "s_max of UniformLogSNR is positive and finite, not nan"),
        (lambda: KarrasSigmas(s_min=-1.0), "s_min of KarrasSigmas is positive and finite, not -1.0"),
        (lambda: UniformLogSNR(s_min=0.0), "s_min of UniformLogSNR is positive and finite, not 0.0"),
        (lambda: ShiftedTimes(math.inf), "shift of a grid of times is positive and finite, not inf"),
        (lambda: GivenTimes((1.0, 0.5, 0.7, 0.0)), "each below the one before it"),
        (lambda: GivenTimes((0.0, 1.0)), "fall, from noise to data"),
        (lambda: GivenTimes((1.0, 0.5, 0.0)).grid(RectifiedFlow(), 3), "3 times, for 2 steps, not 3"),
        (lambda: ChainTimes().grid(VP(), 3), "steps of the chain of a DDPM, and VP has none"),
    ],
)
def test_grids_that_are_none_are_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_a_table_and_the_steps_of_a_chain_are_taken_as_they_are():
    np.testing.assert_array_equal(GivenTimes((0.9, 0.5, 0.1)).grid(VP(), 2), [0.9, 0.5, 0.1])
    np.testing.assert_array_equal(ChainTimes().grid(DDPM(), 4), [1.0, 0.75, 0.5, 0.25, 0.0])


def test_without_a_shift_times_are_evenly_spaced():
    np.testing.assert_allclose(np.diff(ShiftedTimes(1.0).grid(RectifiedFlow(), 28)), -1 / 28)


def test_sd3_as_published_shifts_its_smallest_time_twice_and_corrected_once():
    for shift, steps, published, once in ((3.0, 28, 0.00893, 0.00299), (1.0, 50, 0.001, 0.001)):
        ends = [SD3Times(shift, corrected).grid(RectifiedFlow(), steps)[-2] for corrected in (False, True)]
        np.testing.assert_allclose(ends, [published, once], atol=6e-6)


@pytest.mark.parametrize(("steps", "shift"), [(28, 3.0), (50, 1.0)])
def test_sd3_as_published_is_the_table_of_diffusers(steps, shift):
    with np.load(Path(__file__).parents[1] / "golden" / "solvers.npz") as golden:
        times = golden[f"euler_{steps}_shift{shift:g}.times"]
    np.testing.assert_allclose(SD3Times(shift).grid(RectifiedFlow(), steps), times, atol=1e-7)
