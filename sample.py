"""Draw samples from a trained run: python sample.py --prompt "a handwritten seven" --num 16 --out out

With --checkpoint they are drawn from weights of another project: python sample.py --checkpoint stable-diffusion-3 ...
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from genjax import config
from genjax.errors import InputError
from genjax.parallel.compilation import convolve_by_xla, keep_compiled
from genjax.runs.asked import asked, show_runs, writable
from genjax.runs.outputs import say
from genjax.runs.weights import read_weights
from genjax.tasks.sd3_pipeline import DrawCheckpoint


@dataclass(frozen=True)
class Options:
    """Draw samples from the newest run below runs/, or from a small one that ships with the project."""

    workdir: str | None = None
    """Run directory to sample from, or the name of a run that ships; --list shows them."""
    checkpoint: str | None = None
    """Weights of Stable Diffusion 3 to sample from instead, a folder of diffusers or a released file."""
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
    if any(word.partition("=")[0] == "--checkpoint" for word in argv):
        options, request = config.parse_with(argv, Options(), lambda _: DrawCheckpoint())
        if options.checkpoint is None or options.workdir is not None:
            raise InputError("--checkpoint is a file or folder of weights, and goes without --workdir")
        path = Path(options.checkpoint)
        request.check(path)
        keep_compiled(options.compile_cache)
        outputs = partial(request, path)
    else:
        options, found, task, request = asked("sample", argv, Options())
        keep_compiled(options.compile_cache)
        parts, step = read_weights(found.directory, task)
        say(console, f"{found.directory} at step {step} ({found.why})")
        outputs = partial(request, task, parts)
    out = writable(Path(options.out))
    for output in outputs():
        output.show(console)
        say(console, f"in {output.write(out)}")


if __name__ == "__main__":
    config.run(main)
