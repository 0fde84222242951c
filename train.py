"""Train the system that a config describes: python train.py --config configs/sd3.py"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genjax import config
from genjax.parallel.compilation import convolve_by_xla, keep_compiled
from genjax.training.loop import fit


@dataclass(frozen=True)
class Options:
    """Train the system that a config file describes; in a directory that holds a run of it, go on with that run."""

    config: str = "configs/sd3.py"
    """FILE[:VARIANT] of the config."""
    workdir: str | None = None
    """Run directory; runs/NAME-VARIANT when not given."""
    compile_cache: bool = True
    """Keep compiled programs below the user's cache directory, so that the next start need not compile them."""


def main(argv: Sequence[str]) -> None:
    convolve_by_xla()
    options, task, name = config.parse_with_config(argv, Options())
    keep_compiled(options.compile_cache)
    fit(task, Path(options.workdir or f"runs/{name}"))


if __name__ == "__main__":
    config.run(main)
