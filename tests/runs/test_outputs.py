"""Laws of outputs: what is shown, what is written, and what is kept of a preview are the same thing."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from genjax.runs.outputs import Arrays, Frames, Images, Numbers, Text


class Kept:
    """Events that are remembered."""

    def __init__(self):
        self.seen = []

    def image(self, step, name, image):
        self.seen.append((step, name, image.shape))

    def text(self, step, name, text):
        self.seen.append((step, name, text))

    def number(self, step, name, value):
        self.seen.append((step, name, value))


def said(output) -> str:
    console = Console(file=io.StringIO(), width=200)
    output.show(console)
    return console.file.getvalue()


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)


def test_pictures_grid_and_arrays_hold_the_same_samples(images, tmp_path):
    drawn = Images(images, ["a", "b", "c"], said="three of them", arrays={"seed": 7})
    assert drawn.write(tmp_path) == tmp_path / "grid.png"
    assert said(drawn) == "three of them\n"
    with np.load(tmp_path / "samples.npz") as file:
        assert file["prompts"].tolist() == ["a", "b", "c"]
        assert file["seed"] == 7
        pixels = file["images"]
    np.testing.assert_allclose(pixels / 127.5 - 1, images, atol=1 / 255 + 1e-6)
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{i:04d}.png")), pixels[i, :, :, 0])
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    factor = grid.shape[0] // 19
    np.testing.assert_array_equal(grid[::factor, ::factor][1:9, 1:9], pixels[0, :, :, 0])


def test_arrays_are_written_as_they_are_and_told_in_a_line(images, tmp_path):
    output, kept = Arrays("couples", {"images": images, "labels": np.arange(3)}, said="three couples"), Kept()
    assert said(output) == "three couples\n"
    output.record(tmp_path, 7, kept)
    assert kept.seen == [(7, "samples/couples", "three couples")]
    for path in (output.write(tmp_path), tmp_path / "step_000007_couples.npz"):
        with np.load(path) as file:
            assert set(file.files) == {"images", "labels"}
            np.testing.assert_array_equal(file["images"], images)


def test_without_captions_there_are_no_prompts(images, tmp_path):
    Images(images).write(tmp_path)
    with np.load(tmp_path / "samples.npz") as file:
        assert file.files == ["images"]


def test_an_animation_has_every_frame(images, tmp_path):
    frames = np.stack([images, -images, images / 2, -images / 2])  # equal ones would be one that stays longer
    assert Image.open(Frames(frames).write(tmp_path)).n_frames == 4


def test_a_text_is_shown_as_it_comes_and_written_whole(tmp_path):
    made = []

    def pieces():
        for piece in (" upon", " a [bold]time"):
            made.append(piece)
            yield piece

    text = Text("once", pieces(), name="0003")
    stream = text.stream()
    assert next(stream) == " upon"
    assert made == [" upon"]
    assert said(text) == "once upon a [bold]time\n"
    assert text.write(tmp_path).read_text() == "once upon a [bold]time"
    assert (tmp_path / "0003.txt").is_file()
    assert made == [" upon", " a [bold]time"]


def test_the_newest_figures_stand_beside_all_that_were_ever_made(tmp_path):
    first, second = ({"accuracy": value, "samples": 10} for value in (0.5, 0.75))
    for values in (first, second):
        Numbers(values, title="a run").write(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == second
    assert [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()] == [first, second]
    assert "0.7500" in said(Numbers(second))


def test_previews_are_one_small_file_and_one_event_each(images, tmp_path):
    events = Kept()
    for output in (Images(images), Text("once", iter([" upon"])), Numbers({"loss": 1.5, "solver": "Euler"})):
        output.record(tmp_path, 20, events)
    assert {path.name for path in tmp_path.iterdir()} == {"step_000020.png", "step_000020_0000.txt"}
    assert events.seen == [(20, "samples", (19, 19, 1)), (20, "samples/0000", "once upon"), (20, "samples/loss", 1.5)]
