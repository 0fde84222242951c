"""Laws of the page of tokenisers: every run is a config that fits together, and the page says what was measured."""

import pytest

from genjax.data import Emoji
from tools import compress

FIGURES = {
    "psnr": 20.0,
    "frechet_distance": 1.0,
    "frechet_distance_train_to_test": 0.29,
    "usage": 0.5,
    "perplexity": 9.1,
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


def test_tokenisers_of_emoji_are_of_equal_bits():
    tasks = {name: compress.task_of(run) for name, run in compress.EMOJI.items()}
    bits = {name: task.bits_per_position for name, task in tasks.items() if task.is_discrete}
    assert len(bits) == 4 and all(abs(bit - 10) < 0.04 for bit in bits.values())
    assert {task.data for task in tasks.values()} == {Emoji(size=32)}
    assert len({task.train.steps for task in tasks.values()}) == 1


def test_the_table_stands_between_its_marks_and_nothing_else_moves():
    begin = compress.BEGIN.format("digits")
    page = f"before\n{begin}old\n{compress.END}after\n{compress.BEGIN.format('emoji')}{compress.END}"
    kept = dict.fromkeys(compress.RUNS, FIGURES) | {"posterior": POSTERIOR}
    told = compress.with_text(page, "digits", compress.table(compress.RUNS, kept))
    assert told.startswith(f"before\n{begin}| bottleneck")
    assert told.endswith(page.partition("old\n")[2])
    assert "old" not in told and told.count("\n| `") == len(compress.RUNS)
    assert "| `Posterior`, 2 numbers |  |  | 30.00 | 0.50 |  |  |" in told
    assert "| `VQ`, 64 entries | 64 | 48 | 20.00 | 1.00 | 0.50 | 9 |" in told
    assert "to the held-out ones is 0.29." in told
    assert compress.with_text(told, "digits", compress.table(compress.RUNS, kept)) == told


@pytest.mark.parametrize("name", ["digits", "emoji"])
def test_the_page_has_a_place_for_each_table(name):
    page = compress.PAGE.read_text(encoding="utf-8")
    assert "| told |\n" in compress.with_text(page, name, "| told |\n")


def test_where_no_frechet_distance_was_measured_there_is_no_column_of_it():
    plain = {name: value for name, value in FIGURES.items() if "frechet" not in name}
    told = compress.table(compress.EMOJI, dict.fromkeys(compress.EMOJI, plain))
    assert "Fréchet" not in told and "| `LFQ`, 10 signs | 64 | 48 | 20.00 | 0.50 | 9 |" in told
