"""Draw samples from a trained run: python sample.py --prompt "a handwritten seven" --num 16 --out out"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from genjax import config
from genjax.parallel.compilation import convolve_by_xla, keep_compiled
from genjax.runs.asked import asked, show_runs, writable
from genjax.runs.outputs import say
from genjax.runs.weights import read_weights


@dataclass(frozen=True)
class Options:
    """Draw samples from the newest run below runs/, or from a small one that ships with the project."""

    workdir: str | None = None
    """Run directory to sample from, or the name of a run that ships; --list shows them."""
    out: str = "out"
    """Directory for what is drawn."""
    list: bool = False
    """Only show which runs there are."""
    allow: tuple[str, ...] = ()
    """Packages outside genjax that the config of the run may import."""
    compile_cache: bool = True
    """Keep compiled programs below the user's cache directory, so that the next start need not compile them."""


def main(argv: Sequence[str]) -> None:
    convolve_by_xla()
    console = Console()
    if "--list" in argv:
        show_runs(console)
        return
    options, found, task, request = asked("sample", argv, Options())
    keep_compiled(options.compile_cache)
    parts, step = read_weights(found.directory, task)
    out = writable(Path(options.out))
    say(console, f"{found.directory} at step {step} ({found.why})")
    for output in request(task, parts):
        output.show(console)
        say(console, f"in {output.write(out)}")


if __name__ == "__main__":
    config.run(main)
