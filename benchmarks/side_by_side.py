"""Timing side by side: the same work done in several ways, in turns, on the same machine and in the same run.

All take turns, a few calls each and never at once, so that a slow minute of the machine falls on all of them. Each has
its own default number of threads. A printed time is the median over all calls.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from genjax.parallel.compilation import convolve_by_xla

PACKAGES = ("jax", "jaxlib", "torch", "diffusers", "triton", "jax-triton")
"""Whose versions stand beside a result, where they are installed."""

convolve_by_xla()  # as at the front doors

LOAD_AT_START = os.getloadavg()[0]

console = Console()


def medians(rounds: int, calls: int, **functions: Callable[[], None]) -> dict[str, float]:
    """Median seconds of one call of each function over `rounds` turns of `calls`; each returns when it is done."""
    seconds = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            time.sleep(0.05)  # idle threads of the other framework spin for a while before they sleep
            for _ in range(calls):
                start = time.perf_counter()
                function()
                if turn:  # the first turn warms up
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(title: str, columns: list[str], rows: list[list]) -> None:
    """A table whose first column is text and whose numbers are milliseconds or ratios."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)


def print_result(**figures) -> None:
    """The last line: all that a later comparison needs, as JSON; before it a warning where the machine was not idle."""
    if LOAD_AT_START > 0.5:
        console.print(f"[yellow]The machine had a load of {LOAD_AT_START:.1f} at the start: these times mean little.")
    rounded = {name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({**rounded, "machine": machine()}))


def machine() -> dict[str, str | int]:
    """Where and with what the times were taken."""
    models = [line for line in cpuinfo() if line.startswith("model name")]
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_at_start": round(LOAD_AT_START, 2),
        "jax_backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := installed(name))},
    }


def installed(package: str) -> str | None:
    """The version of a package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
