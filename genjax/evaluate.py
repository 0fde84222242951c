"""Measure a trained run: python -m genjax.evaluate --workdir DIR prints a table and writes DIR/evaluation.json."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from genjax import config
from genjax.parallel.compilation import convolve_by_xla, keep_compiled
from genjax.runs.asked import asked, writable
from genjax.runs.directory import is_shipped
from genjax.runs.outputs import Numbers, say
from genjax.runs.weights import read_weights

__all__ = ["Options", "main"]


@dataclass(frozen=True)
class Options:
    """Measure the newest run below runs/, or another, with its averaged weights."""

    workdir: str | None = None
    """Run directory to measure, or the name of a run that ships."""
    out: str | None = None
    """Directory for evaluation.json and evaluations.jsonl; the run's own when not given, or out for one that ships."""
    allow: tuple[str, ...] = ()
    """Packages outside genjax that the config of the run may import."""
    compile_cache: bool = True
    """Keep compiled programs below the user's cache directory, so that the next start need not compile them."""


def main(argv: Sequence[str]) -> None:
    """Measure, show and write, as the words on the command line ask."""
    convolve_by_xla()
    options, found, task, request = asked("evaluate", argv, Options())
    keep_compiled(options.compile_cache)
    parts, step = read_weights(found.directory, task)
    beside = "out" if is_shipped(found.directory) else found.directory
    out = writable(Path(options.out or beside))
    console = Console()
    say(console, f"{found.directory} at step {step} ({found.why})")
    for output in request(task, parts):
        if isinstance(output, Numbers):
            output = replace(output, values={"step": step} | dict(output.values), title=str(found.directory))
        output.show(console)
        say(console, f"in {output.write(out)}")


if __name__ == "__main__":
    config.run(main)
