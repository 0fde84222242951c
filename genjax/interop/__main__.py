"""Weights of other projects at the command line.

    python -m genjax.interop inspect PATH                            what a file or folder of weights holds
    python -m genjax.interop convert SOURCE TARGET --layout NAME     the same weights in another layout

Layouts are `diffusers` (a folder for each part), `original` (one file, as Stability AI releases Stable Diffusion 3) and
`genjax` (one file of our trees). Arrays are moved and keep their type: back and forth is the identity.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flax.traverse_util import flatten_dict
from rich.console import Console
from rich.table import Table

from genjax import config
from genjax.errors import InputError
from genjax.interop import networks
from genjax.interop.tables import StateDict

__all__ = ["Convert", "convert", "inspect", "main"]

_USAGE = "inspect PATH, or convert SOURCE TARGET --layout diffusers|original|genjax"


@dataclass(frozen=True)
class Convert:
    """Write the networks of a file or folder in another layout."""

    layout: Literal["diffusers", "original", "genjax"] = "diffusers"
    """Of the target: a folder for each part, one released file, or one file of our trees."""


def main(argv: Sequence[str]) -> None:
    """Inspect or convert, as the words on the command line ask."""
    options = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    match argv[:options]:
        case ["inspect", path] if options == len(argv):
            inspect(Path(path), Console())
        case ["convert", source, target]:
            convert(Path(source), Path(target), config.parse(argv[options:], Convert()), Console())
        case _:
            raise InputError(f"python -m genjax.interop takes {_USAGE}")


def inspect(path: Path, console: Console) -> None:
    """Show which networks are there, of what sizes and types."""
    own, unknown = networks.ours(path), []
    if own is not None:
        rows = [(part, "genjax", flatten_dict(one.params, sep="."), one.sizes) for part, one in own.items()]
    else:
        found, unknown = networks.find(path)
        rows = [(one.part, one.layout, one.arrays, one.sizes) for one in found]
    table = Table("part", "network", "layout", "arrays", "parameters", "types", "MB", title=str(path))
    for part, layout, arrays, _ in rows:
        table.add_row(part, networks.PARTS[part].title, layout, *_counted(arrays))
    if rows:
        console.print(table)
    for part, _, _, sizes in rows:
        told = ", ".join(f"{name}={value}" for name, value in sizes.items())
        console.print(f"{part}: {told}", soft_wrap=True, highlight=False)
    if unknown:
        more = f" and {len(unknown) - 6} more" * (len(unknown) > 6)
        console.print(f"{len(unknown)} arrays of no network that is known here: {', '.join(unknown[:6])}{more}")


def convert(source: Path, target: Path, options: Convert, console: Console) -> None:
    """Write what `source` holds in another layout. Raises InputError where the target exists already."""
    if target.exists():
        raise InputError(f"{target} exists already; name a new file or folder")
    if options.layout != "diffusers" and target.suffix != ".safetensors":
        raise InputError(f"the layout {options.layout} is a file: {target} should end in .safetensors")
    read = networks.read(source)
    networks.write(target, read, options.layout)
    console.print(f"{', '.join(read)} in {target}", soft_wrap=True, highlight=False)


def _counted(arrays: StateDict) -> tuple[str, str, str, str]:
    types = Counter(str(array.dtype) for array in arrays.values())
    parameters, size = (sum(getattr(array, kind) for array in arrays.values()) for kind in ("size", "nbytes"))
    return str(len(arrays)), f"{parameters:,}", ", ".join(types), f"{size / 1e6:,.1f}"


if __name__ == "__main__":
    config.run(main)
