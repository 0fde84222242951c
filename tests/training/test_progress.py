"""Laws of the progress bar."""

import io

from rich.console import Console

from genjax.training.progress import progress_bar


def test_a_terminal_shows_steps_loss_and_memory():
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with progress_bar(console, 10, 4) as bar:
        bar.advance(7)
        bar.show({"loss/critic": 0.125, "loss/generator": 2.0, "validation_loss": 9.0})
    told = console.file.getvalue()
    for part in ("7/10", "critic 0.1250  generator 2.0000", "GiB"):
        assert part in told


def test_what_is_not_a_terminal_gets_no_bar():
    console = Console(file=io.StringIO(), force_terminal=False)
    with progress_bar(console, 10, 0) as bar:
        bar.advance(1)
    assert "1/10" not in console.file.getvalue()
