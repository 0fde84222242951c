"""Laws of what sample.py writes."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from genjax.errors import InputError
from genjax.tasks.sampling import save_samples


def draw(task, weights, out, **options):
    given = dict(prompt=None, number=4, sampler=task.sampler, seed=0, trajectory=False) | options
    return save_samples(task, weights, out, **given)


def test_pictures_grid_and_arrays_hold_the_same_samples(task, params, tmp_path):
    draw(task, lambda: (params, 7), tmp_path, number=3, prompt="a handwritten seven", trajectory=True)
    with np.load(tmp_path / "samples.npz") as file:
        images = file["images"]
        assert file["prompts"].tolist() == ["a handwritten seven"] * 3
        assert file["seed"] == 0
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{i:04d}.png")), images[i, :, :, 0])
    assert Image.open(tmp_path / "trajectory.gif").n_frames == task.sampler.steps + 1
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    factor = grid.shape[0] // 19
    np.testing.assert_array_equal(grid[::factor, ::factor][1:9, 1:9], images[0, :, :, 0])


def test_without_a_prompt_the_captions_are_drawn_in_turn(task, params, tmp_path):
    drawn = draw(task, lambda: (params, 7), tmp_path, number=12)
    assert drawn["prompts"][:2] == ["a handwritten zero", "a handwritten one"]
    assert drawn["prompts"][10] == drawn["prompts"][0]


@pytest.mark.parametrize("wrong", [{"number": 0}, {"prompt": "x" * 99}])
def test_bad_input_is_refused_before_anything_is_read_or_written(task, tmp_path, wrong):
    def weights():
        raise AssertionError("the weights were read")

    with pytest.raises(InputError):
        draw(task, weights, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_an_output_directory_that_cannot_be_made_is_refused(task, params, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        draw(task, lambda: (params, 7), tmp_path / "file" / "out", sampler=replace(task.sampler))
