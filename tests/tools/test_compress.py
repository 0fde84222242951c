"""Laws of the page of tokenisers: every run is a config that fits together, and the page says what was measured."""

import pytest

from tools import compress

FIGURES = {
    "psnr": 20.0,
    "frechet_distance": 1.0,
    "frechet_distance_train_to_test": 0.29,
    "usage": 0.5,
    "entropy": 3.0,
    "bits_per_picture": 64.0,
    "positions_counted": 80,
    "test_images": 5,
}
TWO_LEVELS = {
    "entropy/level=0": 1.0,
    "entropy/level=1": 2.0,
    **{name: FIGURES[name] for name in ("positions_counted", "test_images")},
}


POSTERIOR = {"psnr": 30.0, "frechet_distance": 0.5, "frechet_distance_train_to_test": 0.29}


@pytest.mark.parametrize("name", compress.RUNS)
def test_every_run_is_of_the_bits_that_its_name_says(name):
    task = compress.task_of(compress.RUNS[name])
    task.check()
    assert task.critic is None
    if name != "posterior":
        assert task.bits_per_position == pytest.approx(float(name.rpartition("-")[2]))


def test_the_entropy_of_a_picture_is_that_of_all_its_positions_and_levels():
    assert compress.entropy(FIGURES) == 16 * 3.0
    assert compress.entropy(TWO_LEVELS) == 16 * (1.0 + 2.0)
    assert compress.entropy({"psnr": 1.0}) is None


def test_the_table_stands_between_its_marks_and_nothing_else_moves():
    page = f"before\n{compress.BEGIN}old\n{compress.END}after\n"
    kept = dict.fromkeys(compress.RUNS, FIGURES) | {"posterior": POSTERIOR}
    told = compress.with_table(page, kept)
    assert told.startswith(f"before\n{compress.BEGIN}| bottleneck") and told.endswith(f"{compress.END}after\n")
    assert "old" not in told and told.count("\n| `") == len(compress.RUNS)
    assert "| `Posterior`, 2 numbers |  |  | 30.00 | 0.50 |  |" in told
    assert "to the held-out ones is 0.29." in told
    assert compress.with_table(told, kept) == told
