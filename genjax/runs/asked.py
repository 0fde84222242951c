"""What was asked at a door: the run that is meant, and the request whose fields are its options there."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from genjax import config
from genjax.errors import InputError, placed
from genjax.runs.directory import RUNS, Found, find_run, shipped_runs, trained_runs
from genjax.runs.outputs import Door, Request

__all__ = ["Asked", "asked", "show_runs", "writable"]


class Asked(NamedTuple):
    """The options of the door, the run, its task, and what is asked of it."""

    options: Any
    found: Found
    task: Any
    request: Request


def asked(door: Door, argv: Sequence[str], options: Any) -> Asked:
    """What `argv` asks. `options` are the door's own, of which `workdir` and `allow` lead to the run.

    The request has been checked, no weights have been read. Raises InputError for anything that cannot be done.
    """
    run = {}

    def request_of(options: Any) -> Request:
        run["found"] = find_run(options.workdir)
        allow = config.allowed(options.allow)
        run["task"] = config.read(run["found"].directory / "config.json", allow=allow)
        return run["task"].request(door)

    options, request = config.parse_with(argv, options, request_of)
    with placed("data", type(run["task"].data)):
        request.check(run["task"])
    return Asked(options, run["found"], run["task"], request)


def writable(folder: Path) -> Path:
    """`folder`, made if need be. Raises InputError when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"the output directory {folder} cannot be written to: {error.strerror}") from None
    return folder


def show_runs(console: Console, runs: Path = RUNS) -> None:
    """A table of the trained runs below `runs`, newest first, and of those that ship."""
    table = Table("run", "system", "from")
    for kind, directories in ((f"below {runs}", trained_runs(runs)), ("ships with genjax", shipped_runs())):
        for directory in directories:
            system = json.loads((directory / "config.json").read_text(encoding="utf-8"))["type"].rpartition(".")[2]
            table.add_row(str(directory) if directory.parent == runs else directory.name, system, kind)
    console.print(table)
